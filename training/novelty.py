"""How far a clip is from the clips that a network was trained on, so that it can decline to score others.

Two descriptions of a clip are compared with those of the training clips: the features of the backbone, and simple
statistics of the picture and its motion. The second helps small networks, which have seen nothing but one kind of
action and may give everything else the same features. For each, the distance is Mahalanobis' with the shrunk covariance of Ledoit
and Wolf ("A well-conditioned estimator for large-dimensional covariance matrices", 2004), as proposed for networks by
Lee et al. ("A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial Attacks", NeurIPS 2018).
The larger of the two counts, and the limit is a quantile of the validation clips, as in split conformal prediction. Nothing
is learned from clips of other things.
"""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_preparation.actions import Action
from data_preparation.archive import open_frames, source_rate
from data_preparation.common.errors import UserError, first_line
from data_preparation.common.files import reporting_write_errors, write_atomic
from training.backbones.base import Backbone
from training.data.batch import Batch, Tensors
from training.data.dataset import ActionDataset
from training.engine.prediction import Predictor
from training.model import ScoringModel

LIMIT = 1.0  # of the distance: clips beyond it are declined
ACCEPTED = 0.99  # share of actions like the validation's that the limit accepts at least
MOTION_STEPS = 16  # parts of a clip whose motion is described, at most
MAX_TRAIN_CLIPS = 2000  # that the statistics are computed from
_MAX_DIMENSIONS = 256  # principal components of a description that are kept
_LEAST_SPREAD = 1e-3  # of a value that is always the same, relative to the mean deviation of all
_LEAST_DIVISOR = 1e-9  # so that float32 holds the quotients even if all clips have the same description

Arrays = Mapping[str, np.ndarray]


# -------------------------------------------------------------------------------------------------------- descriptions


def describe(model: ScoringModel, batch: Batch) -> Tensors:
    """The descriptions of a batch of B clips: "features" (B, D), and for video "picture" (B, 5 + motion steps)."""
    clip = batch.clips["clip"]
    return _descriptions(model.backbone(model.prepare(clip)), clip)


def outputs_and_descriptions(model: ScoringModel, batch: Batch) -> tuple[Tensors, Tensors]:
    """(the outputs of a model for a batch, `describe` of it). The backbone runs once if the method runs it on the whole clips."""
    clips = {name: model.prepare(clip) for name, clip in batch.clips.items()}
    with _recorded(model.backbone) as passes:
        outputs = model.method(model.backbone, clips, batch.given, batch.labels)
    features_BND = next((features for video, features in passes if video is clips["clip"]), None)
    if features_BND is None:  # the method uses other features
        features_BND = model.backbone(clips["clip"])
    return outputs, _descriptions(features_BND, batch.clips["clip"])


@contextmanager
def _recorded(backbone: Backbone) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
    """Collect (input, features) of each pass of a backbone."""
    name = "with_maps" if hasattr(backbone, "with_maps") else "forward"  # methods also call with_maps directly
    compute: Callable[[torch.Tensor], Any] = getattr(backbone, name)
    passes: list[tuple[torch.Tensor, torch.Tensor]] = []

    def recording(video: torch.Tensor) -> Any:
        computed = compute(video)
        passes.append((video, computed[0] if name == "with_maps" else computed))
        return computed

    setattr(backbone, name, recording)
    try:
        yield passes
    finally:
        delattr(backbone, name)


def _descriptions(features_BND: torch.Tensor, clip: torch.Tensor) -> Tensors:
    described = {"features": features_BND.float().mean(dim=1)}
    if clip.dim() == 5:
        described["picture"] = picture_statistics(clip)
    return described


def picture_statistics(clip_BTCHW: torch.Tensor) -> torch.Tensor:
    """(B, T, 3, H, W) uint8 -> (B, 5 + min(T - 1, MOTION_STEPS)): mean brightness, contrast, mean colourfulness, mean strength of
    vertical and horizontal edges, and the mean change from frame to frame in each part of the clip. White is 1."""
    clip = clip_BTCHW.float() / 255
    grey_BTHW = clip.mean(dim=2)
    over_frames = (1, 2, 3)
    values = [
        grey_BTHW.mean(over_frames),
        grey_BTHW.std(over_frames, correction=0),
        (clip.amax(dim=2) - clip.amin(dim=2)).mean(over_frames),
        grey_BTHW.diff(dim=3).abs().mean(over_frames),
        grey_BTHW.diff(dim=2).abs().mean(over_frames),
    ]
    change_BT = grey_BTHW.diff(dim=1).abs().mean(dim=(2, 3))
    if steps := min(change_BT.shape[1], MOTION_STEPS):
        values += torch.nn.functional.adaptive_avg_pool1d(change_BT[:, None], steps)[:, 0].unbind(dim=1)
    return torch.stack(values, dim=1)


# ---------------------------------------------------------------------------------------------------------- statistics


@dataclass(frozen=True)
class Spread:
    """Where the training clips lie in one description: `mean` (D,), and `whiten` (D, k), which maps their covariance to the
    identity, divided by the limit of the distance."""

    mean: np.ndarray
    whiten: np.ndarray

    def distances(self, values_BD: np.ndarray) -> np.ndarray:
        """Mahalanobis' distance of each row in units of the limit, (B,)."""
        return np.linalg.norm((values_BD - self.mean) @ self.whiten, axis=1)

    @staticmethod
    def of(train_ND: np.ndarray) -> Spread:
        """The spread of the training clips, with the limit 1."""
        from sklearn.covariance import LedoitWolf  # here, because the import takes a second
        from sklearn.decomposition import PCA

        mean, deviation = train_ND.mean(axis=0), train_ND.std(axis=0)
        scale = 1 / np.maximum(deviation, max(_LEAST_SPREAD * deviation.mean(), _LEAST_DIVISOR))
        scaled = (train_ND - mean) * scale
        components = np.eye(scaled.shape[1])
        if scaled.shape[1] > _MAX_DIMENSIONS:
            kept = min(_MAX_DIMENSIONS, len(scaled))
            components = PCA(kept, svd_solver="full").fit(scaled).components_.T
        covariance = LedoitWolf(assume_centered=True).fit(scaled @ components).covariance_
        variances, axes = np.linalg.eigh(covariance)
        variances = np.maximum(variances, _LEAST_SPREAD**2)
        return Spread(mean, scale[:, None] * components @ (axes / np.sqrt(variances)))


@dataclass(frozen=True)
class Novelty:
    """The spreads of the training clips by description. `validated` is the number of validation clips that set the limit, `epoch`
    that of the checkpoint whose features these are.

    `noun` is what a clip shows, such as "dive"; `lengths` (A,) are the lengths of the training actions in frames, and `rate` the
    frames per second of their videos, 0 if unknown. A search in a long video uses them.
    """

    spreads: Mapping[str, Spread]
    validated: int
    epoch: int = 0
    noun: str = Action.noun
    lengths: np.ndarray = field(default_factory=lambda: np.zeros(0))
    rate: float = 0.0

    def distances(self, described: Arrays) -> np.ndarray:
        """The distance of each clip from the training clips, (B,): LIMIT or less for clips like them.

        `described` holds the arrays of `describe`. A description that is not finite is infinitely far.
        """
        found = np.stack([spread.distances(described[name]) for name, spread in self.spreads.items()])
        return np.where(np.isfinite(found), found, np.inf).max(axis=0)

    @property
    def expected_declined(self) -> float:
        """The share of actions like those of the validation that is expected to be declined, wrongly."""
        return 1 - _accepted_count(self.validated) / (self.validated + 1)

    def text(self) -> str:
        """The limit in words, for logs."""
        return f"{self.validated} validation {self.noun}s set the limit, {self.expected_declined:.1%} of {self.noun}s like them are expected beyond it"


def declined_text(noun: str, distance: float) -> str:
    """What is said of a clip that is declined."""
    article = "an" if noun[0] in "aeiou" else "a"
    return f"not {article} {noun} like those it was trained on (distance {distance:.2f}, limit {LIMIT:g})"


class NotFinite(UserError):
    """A network that gives a clip features that are not finite. Its predictions may be useful all the same."""


def fit(train: Arrays, val: Arrays) -> Novelty:
    """Fit to the descriptions of training clips, and set the limit so that it accepts ACCEPTED of the validation clips, or all if
    they are fewer than a hundred.

    Raises:
        NotFinite: a description is not finite.
    """
    if not all(np.isfinite(values).all() for part in (train, val) for values in part.values()):
        raise NotFinite(
            "the features of some clips are not finite, so the run cannot decline clips: run python -m training.calibrate with --precision fp32"
        )
    spreads = {}
    for name, train_ND in train.items():
        spread = Spread.of(np.asarray(train_ND, np.float64))
        spreads[name] = _divided(spread, np.quantile(spread.distances(val[name]), ACCEPTED))
    count = len(next(iter(val.values())))
    together = np.sort(Novelty(spreads, count).distances(val))
    limit = together[_accepted_count(count) - 1]
    return Novelty({name: _divided(spread, limit) for name, spread in spreads.items()}, count)


def _divided(spread: Spread, limit: float) -> Spread:
    return Spread(spread.mean, spread.whiten / max(limit, _LEAST_DIVISOR))


def _accepted_count(count: int) -> int:
    """How many of `count` validation clips the limit accepts: of a new one like them, ACCEPTED or more are accepted then."""
    return min(math.ceil((count + 1) * ACCEPTED), count)


def describe_all(model: ScoringModel, predictor: Predictor, data: ActionDataset) -> Arrays:
    """The descriptions of all clips of a data set, computed on all ranks, on every rank."""
    model.eval()
    rows = predictor.forward_all(lambda batch: describe(model, batch), data)
    return {name: tensor.numpy() for name, tensor in rows.outputs.items()}


def some_of(train_data: ActionDataset) -> ActionDataset:
    """At most MAX_TRAIN_CLIPS actions of a training set, without augmentation."""
    actions = train_data.actions[:: math.ceil(len(train_data) / MAX_TRAIN_CLIPS)]
    return ActionDataset(actions, train_data.config, train_data.method, augment=False, pool=train_data.pool)


def measured(train: Arrays, val: Arrays, train_data: ActionDataset, epoch: int) -> Novelty:
    """The statistics of a run, from the descriptions by the weights of `epoch`."""
    actions = train_data.actions
    lengths = np.array([action.frame_count for action in actions])
    return replace(fit(train, val), epoch=epoch, noun=noun_of(actions), lengths=lengths, rate=rate_of(train_data))


def noun_of(actions: Sequence[Action]) -> str:
    """What all of some actions are: "dive", or "action" in general."""
    nouns = {action.noun for action in actions}
    return nouns.pop() if len(nouns) == 1 else Action.noun


def rate_of(data: ActionDataset) -> float:
    """Frames per second of the videos of a data set, from the first action's; 0 if unknown."""
    if data.config.reads != "video":
        return 0.0
    with suppress(UserError):
        return float(source_rate(open_frames(data.config.root_dir, data.actions[0].video).provenance) or 0)
    return 0.0


# --------------------------------------------------------------------------------------------------------------- files


def save(path: Path, novelty: Novelty) -> str:
    """Write the statistics as .npz, atomically; return the limit in words.

    Raises:
        UserError: the disk is full or not writable.
    """
    facts = {name: np.array(getattr(novelty, name)) for name in _FACTS}
    spreads = {
        f"{name}.{part}": getattr(spread, part).astype(np.float32)
        for name, spread in novelty.spreads.items()
        for part in ("mean", "whiten")
    }
    content = io.BytesIO()
    np.savez(content, allow_pickle=False, **facts, **spreads)
    with reporting_write_errors(path):
        write_atomic(path, content.getvalue())
    return novelty.text()


_FACTS: dict[str, Callable[[np.ndarray], Any]] = {
    "validated": int,
    "epoch": int,
    "noun": str,
    "lengths": np.asarray,
    "rate": float,
}


def load(path: Path) -> Novelty | None:
    """Read the statistics; None if the file does not exist.

    Raises:
        UserError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        names = sorted({name.rpartition(".")[0] for name in arrays} - {""})
        spreads = {
            name: Spread(*(arrays[f"{name}.{part}"].astype(np.float64) for part in ("mean", "whiten")))
            for name in names
        }
        fit_each_other = all(s.mean.ndim == 1 and s.whiten.shape[:1] == s.mean.shape for s in spreads.values())
        if "features" not in spreads or set(spreads) - {"features", "picture"} or not fit_each_other:
            raise ValueError("arrays are missing or do not fit each other")
        return Novelty(spreads, **{name: read(arrays[name]) for name, read in _FACTS.items()})
    except FileNotFoundError:
        return None
    except (
        ArithmeticError,
        EOFError,
        LookupError,
        OSError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(
            f"{path} is damaged ({first_line(error)}): delete it and run python -m training.calibrate --run {path.parent}"
        ) from None


def stored_epoch(path: Path) -> int | None:
    """The epoch of the statistics in a file; None if the file does not exist.

    Raises:
        UserError: the file is damaged.
    """
    found = load(path)
    return None if found is None else found.epoch
