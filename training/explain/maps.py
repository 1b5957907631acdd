"""Which pixels and which frames of a clip changed what a network predicts: maps (B, T, H, W) and the effects of frames (B, T).

captum computes the attributions. Nothing here knows a backbone or a method by name: a backbone may offer maps of its own and the
layer that Grad-CAM reads (backbones.base.Backbone), a method says which numbers are explained (methods.base.Method.quantities).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from captum.attr import InputXGradient, LayerGradCam, Occlusion
from torch.nn import functional as F

from data_preparation.common.errors import UserError
from training.data.batch import Batch, Tensors
from training.model import ScoringModel

KINDS = {
    "gradient": "gradient x input",
    "gradcam": "Grad-CAM",
    "occlusion": "occlusion of patches",
    "attention": "the network's own attention",
    "rollout": "attention roll-out",
}
SMOOTHING = 12  # maps of single pixels are averaged over a square with 1 / SMOOTHING of the frame's height as its side
PATCHES = 8  # occlusion hides squares with 2 / PATCHES of the frame's height as their side, in steps of half of it
MOMENTS = 32  # at most so many groups of adjacent frames are hidden, one after the other


class NoGradient(UserError):
    """What is explained has no gradient, so only occlusion explains it."""


Number = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, T, H, W) -> (B,)


@contextmanager
def _plain(model: ScoringModel) -> Iterator[None]:
    """Run the network in evaluation mode and without stored activations, which the hooks of captum do not survive."""
    backbone, training = model.backbone, model.training
    saved = backbone.checkpoint_activations
    backbone.checkpoint_activations = "False"
    model.eval()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Input Tensor 0 did not already require gradients", module="captum")
            yield
    finally:
        backbone.checkpoint_activations = saved
        model.train(training)


def kinds(model: ScoringModel, video_BCTHW: torch.Tensor) -> list[str]:
    """The kinds of maps that a network offers, the one that is shown by default first."""
    backbone = model.backbone
    with _plain(model), torch.no_grad():
        own = list(backbone.own_maps(video_BCTHW[:1]))
    found = ["gradient", *(["gradcam"] if backbone.last_maps() is not None else []), *own, "occlusion"]
    return sorted(found, key=lambda kind: kind != backbone.explained_by)


def quantities(model: ScoringModel, batch: Batch, video_BCTHW: torch.Tensor) -> Tensors:
    """Method.quantities for the clips of a batch with other pixels."""
    clips = {name: video_BCTHW if name == "clip" else model.prepare(clip) for name, clip in batch.clips.items()}
    outputs = model.method(model.backbone, clips, batch.given, {})
    return model.method.quantities(*({name: t.cpu() for name, t in group.items()} for group in (outputs, batch.given)))


def predicted(
    model: ScoringModel, batch: Batch, video_BCTHW: torch.Tensor
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor | None]]:
    """(quantity, its values, the most probable class (B,) if it is probabilities) of the unchanged clips."""
    with torch.no_grad():
        values = quantities(model, batch, video_BCTHW)
    for quantity, value in values.items():
        yield quantity, value, value.argmax(dim=1) if value.ndim == 2 else None


def repeated(batch: Batch, rows: int) -> Batch:
    """The batch with each action repeated as captum repeats inputs, to `rows` rows in all."""
    times = rows // len(batch.action_index)
    return batch if times == 1 else batch.map(lambda t: t.repeat(times, *[1] * (t.ndim - 1)))


def number_of(model: ScoringModel, batch: Batch, quantity: str, classes_B: torch.Tensor | None) -> Number:
    """The explained number of a quantity as a function of the pixels; of probabilities the log-odds of the given class."""

    def number(video_BCTHW: torch.Tensor) -> torch.Tensor:
        rows = len(video_BCTHW)
        value = quantities(model, repeated(batch, rows), video_BCTHW)[quantity]
        if classes_B is None:
            return value
        chosen = value.gather(1, classes_B.repeat(rows // len(classes_B))[:, None])[:, 0]
        return torch.logit(chosen.double().clamp(1e-7, 1 - 1e-7)).to(value.dtype)

    return number


def grey(video_BCTHW: torch.Tensor) -> torch.Tensor:
    """The clip's mean colour in every pixel: what hidden frames and patches show."""
    return video_BCTHW.mean(dim=(2, 3, 4), keepdim=True).expand_as(video_BCTHW)


def attribution(kind: str, model: ScoringModel, number: Number, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """A map (B, T, H, W) >= 0 of a kind (see KINDS), from 0 to 1 in each clip.

    It shows how much places changed the number, whether up or down; the maps "attention" and "rollout" are the same for all numbers.

    Raises:
        UserError: the network offers no map of this kind. NoGradient: the number has no gradient.
    """
    frames, height, width = video_BCTHW.shape[2:]
    with _plain(model):
        if kind in ("gradient", "gradcam"):
            number = _with_gradient(kind, number)
        if kind == "gradient":
            base = grey(video_BCTHW)
            difference = (video_BCTHW - base).detach()
            maps = InputXGradient(lambda shift: number(base + shift)).attribute(difference).sum(dim=1).abs()
            side = max(height // SMOOTHING, 1) // 2 * 2 + 1
            maps = F.avg_pool2d(maps, side, 1, side // 2, count_include_pad=False)
        elif kind == "gradcam" and (layer := model.backbone.last_maps()) is not None:
            maps = model.backbone.in_clip(LayerGradCam(number, layer).attribute(video_BCTHW), frames).abs()
        elif kind == "occlusion":
            step = max(height // PATCHES, 1), max(width // PATCHES, 1)
            with torch.no_grad():
                maps = (
                    Occlusion(number)
                    .attribute(
                        video_BCTHW,
                        sliding_window_shapes=(3, 1, min(2 * step[0], height), min(2 * step[1], width)),
                        strides=(3, 1, *step),
                        baselines=grey(video_BCTHW),
                    )[:, 0]
                    .abs()
                )
        else:
            with torch.no_grad():
                own = model.backbone.own_maps(video_BCTHW)
            if kind not in own:
                raise UserError(
                    f"this network has no maps of the kind {kind}: choose {', '.join(kinds(model, video_BCTHW))}"
                )
            maps = own[kind]
    return resized(maps.detach().float(), frames, height, width)


def _with_gradient(kind: str, number: Number) -> Number:
    """The number; it raises NoGradient if it has none."""

    def checked(video_BCTHW: torch.Tensor) -> torch.Tensor:
        value = number(video_BCTHW)
        if not value.requires_grad:
            raise NoGradient(
                f"what this method predicts has no gradient, which maps of the kind {kind} need: choose occlusion"
            )
        return value

    return checked


def resized(maps_Bthw: torch.Tensor, frames: int, height: int, width: int) -> torch.Tensor:
    """Interpolate maps to the clip's size (B, T, H, W), and scale each clip's to 0..1. A map of one value becomes 0."""
    maps = F.interpolate(maps_Bthw[:, None], (frames, height, width), mode="trilinear", align_corners=False)[:, 0]
    low, high = maps.amin(dim=(1, 2, 3), keepdim=True), maps.amax(dim=(1, 2, 3), keepdim=True)
    return (maps - low) / (high - low).clamp(min=1e-12)


def effects_of_frames(model: ScoringModel, number: Number, video_BCTHW: torch.Tensor) -> torch.Tensor:
    """(B, T): by how much each frame raised (positive) or lowered the number: its value minus that with the frame in grey.

    In clips of more than MOMENTS frames, groups of adjacent frames are hidden together, and share their effect.
    """
    frames = video_BCTHW.shape[2]
    size = -(-frames // MOMENTS)
    with _plain(model), torch.no_grad():
        whole, base = number(video_BCTHW), grey(video_BCTHW)
        effects = torch.zeros(len(video_BCTHW), frames)
        for start in range(0, frames, size):
            hidden = video_BCTHW.clone()
            hidden[:, :, start : start + size] = base[:, :, start : start + size]
            effects[:, start : start + size] = (whole - number(hidden)).float().cpu()[:, None]
    return effects
