"""Explanations of predictions: which places and moments of a clip changed what the network predicts of it.

explanations = explain(scorer, clips)
write(explanations[0], folder)      # NAME.png and NAME.mp4
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from training.data.batch import Batch
from training.explain.explanation import Explanation, Reason
from training.explain.maps import NoGradient, attribution, effects_of_frames, number_of, predicted
from training.explain.sheet import write
from training.model import ScoringModel

if TYPE_CHECKING:
    from training.scorer import Clip, Scorer

POINTS = ("score", "execution")  # quantities in points

__all__ = ["Explanation", "Reason", "explain", "explain_batch", "write"]


def explain(scorer: Scorer, clips: Sequence[Clip], *, kind: str | None = None) -> list[Explanation]:
    """Explain the predictions of some clips, one after the other. `kind` is the kind of maps; None means that of the network, or
    occlusion if its prediction has no gradient.

    Raises:
        UserError: a clip cannot be read as the network needs it, or the network offers no such map.
    """
    found = []
    for clip in clips:
        batch = scorer.batch([clip]).map(lambda t: t.to(scorer.device))
        name = clip.name or clip.action.name
        found += explain_batch(scorer.model, batch, [name], scorer.facts.classes, kind=kind)
    return found


def explain_batch(
    model: ScoringModel, batch: Batch, names: Sequence[str], classes: Sequence[str] = (), *, kind: str | None = None
) -> list[Explanation]:
    """As `explain`, for a batch whose tensors are on the model's device. `classes` are the names of the data set's classes."""
    clip_BTCHW = batch.clips["clip"]
    video = model.prepare(clip_BTCHW)
    is_asked_for = kind is not None
    kind = kind or model.backbone.explained_by
    frames = clip_BTCHW.permute(0, 1, 3, 4, 2).cpu().numpy()
    reasons: list[list[Reason]] = [[] for _ in names]
    for quantity, value, chosen in predicted(model, batch, video):
        number = number_of(model, batch, quantity, chosen)
        try:
            maps = attribution(kind, model, number, video).cpu().numpy()
        except NoGradient:
            if is_asked_for:
                raise
            kind = "occlusion"
            maps = attribution(kind, model, number, video).cpu().numpy()
        effects = effects_of_frames(model, number, video).numpy()
        for row in range(len(names)):
            texts = described(quantity, value[row], classes)
            reasons[row].append(Reason(*texts, maps[row], effects[row]))
    return [
        Explanation(*of_clip) for of_clip in zip(names, [kind] * len(names), frames, map(tuple, reasons), strict=True)
    ]


def described(quantity: str, value: torch.Tensor, classes: Sequence[str]) -> tuple[str, str, str]:
    """(quantity, its value in words, the unit of effects) of a number or of the probabilities (classes,) of one clip."""
    if value.ndim:
        index, is_task = int(value.argmax()), quantity == "probability"
        name = classes[index] if is_task else f"class {index}"
        return "class" if is_task else quantity, f"{name} ({value[index]:.0%})", "log-odds"
    return (quantity, f"{value:.1f} points", "points") if quantity in POINTS else (quantity, f"{value:.3g}", "")
