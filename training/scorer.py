"""Scorer: the trained network of a run folder, which scores clips that are in memory.

Frames and views of a clip are planned, and its pixels prepared, by the code of validation (training/data): the same frames get
the same score.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate

from data_preparation.actions import Action
from data_preparation.archive import StoredFrames
from data_preparation.common.errors import UserError
from training import pretrained
from training.calibration import Calibration, read_calibration
from training.config import TrainConfig
from training.data.batch import Batch, Tensors
from training.data.dataset import ActionDataset
from training.data.facts import DataFacts
from training.data.loader import evaluation_size
from training.data.plan import ViewChoice
from training.data.sampling import END_ALIGNED, END_SHIFT
from training.data.sources import FrameSource, views_of_test
from training.data.splits import load_splits
from training.data.transforms import resized_size
from training.engine.prediction import as_arrays, forward_rows, in_order
from training.engine.state import load_best
from training.model import ScoringModel, build_model
from training.novelty import LIMIT, Novelty, describe, load, outputs_and_descriptions, picture_statistics
from training.runtime import collectives
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder, read_json
from training.tasks import task_of
from training.tasks.base import Arrays, Task

log = logging.getLogger(__name__)

_ALONE = Ranks()  # one process
_EXAMPLES = {"difficulty": 3.0, "dive_number": "107B"}  # values that a person may know of an action
VALIDATED = ViewChoice(0.5)  # the view of validation
_DESCRIBED = "described."  # before the names of descriptions among the outputs


@dataclass(frozen=True)
class GivenAction(Action):
    """An action that is to be scored: its score is not known, its dive number may be."""

    dive_number: str | None = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one action in memory, resized as the archives hold them, or decoded with Scorer.least.

    `frames_THWC` (T, H, W, 3) are uint8 RGB, and `numbers` (T,) their ascending frame numbers; without `numbers` they are frames
    1 to T. The start and end of `action` are numbers of frames, too. Its other fields are None (or empty) where they are not known.
    """

    frames_THWC: np.ndarray
    action: Action
    name: str = ""
    fps: float = 25.0
    numbers: np.ndarray | None = None


class _FramesOfClip:
    """The frames of a clip, for data.sources.FrameSource; the only video that it has."""

    def __init__(self, clip: Clip) -> None:
        self.frames, self.name = clip.frames_THWC, clip.name or clip.action.name
        self.numbers = np.arange(1, len(self.frames) + 1) if clip.numbers is None else clip.numbers

    def __getitem__(self, video: str) -> _FramesOfClip:
        return self

    def image(self, number: int, least: tuple[int, int] | None = None) -> np.ndarray:
        place = int(np.searchsorted(self.numbers, number))
        if place == len(self.numbers) or self.numbers[place] != number:
            raise UserError(
                f"{self.name} has no frame {number}: it has {len(self.numbers)} frames, give an action within them"
            )
        return self.frames[place]


class _Numbers:
    """The frame numbers of a video whose pixels are not read."""

    def __init__(self, frames: int) -> None:
        self.numbers = np.arange(1, frames + 1)

    def __getitem__(self, video: str) -> _Numbers:
        return self

    def image(self, number: int, least: tuple[int, int] | None = None) -> np.ndarray:
        raise NotImplementedError


@dataclass(frozen=True)
class Prediction:
    """What is predicted of one clip, from frame `start` to frame `end` of its video.

    `values` has "score" in points, or "class", "probability" and "probabilities"; then what else the method tells: "execution",
    "difficulty", attributes, "caption". `low` and `high` are the interval of the score in points, `classes` the set of classes
    that stands in its place for classification; all are None if the run has too few validation actions. `declined` means that the
    clip is unlike those of the training: its `distance` is above the `threshold`.
    """

    name: str
    start: int
    end: int
    values: dict[str, Any]
    low: float | None = None
    high: float | None = None
    classes: tuple[str, ...] | None = None
    declined: bool = False
    distance: float | None = None
    threshold: float | None = None
    noun: str = Action.noun  # what the training clips show


@dataclass(eq=False)
class Scorer:
    """A trained network that scores clips. `stored` says how the frames of its training are stored, so that those of a new
    video are made in the same way. `novelty` has the distances of clips from those of the training. `why_no_interval` and
    `why_no_distance` are sentences if there is no calibration or no `novelty`."""

    config: TrainConfig
    model: ScoringModel
    facts: DataFacts
    task: Task
    device: torch.device
    calibration: Calibration | None = None
    stored: StoredFrames = field(default_factory=StoredFrames)
    why_no_interval: str = ""
    novelty: Novelty | None = None
    why_no_distance: str = ""

    @classmethod
    def from_run(cls, run: Path, *, gpu: bool = True, ranks: Ranks = _ALONE, **flags: Any) -> Scorer:
        """The best checkpoint of a run folder, or an exported model (training.pretrained), on the device of a rank. `flags` replace
        flags of the run, such as the path of boxes.

        Raises:
            UserError: the folder holds no run, the run has no best checkpoint or scores no videos, or a file is damaged.
        """
        folder = RunFolder(Path(run))
        device = collectives.choose_device(gpu, ranks)
        if pretrained.is_exported(folder.path):
            config, facts, stored, model, record = pretrained.load(folder.path, **flags)
            if fault := cannot_score(folder, config):
                raise UserError(fault)
            model, epoch = model.to(device), record["checkpoint"]["best_epoch"]
            fix = "export its run again after python -m training.calibrate"
        else:
            # the network's weights come from best.pt
            config = dataclasses.replace(folder.existing_config(), **{"pretrained_model": "none", **flags})
            if fault := cannot_score(folder, config):
                raise UserError(fault)
            facts, stored = facts_of_run(folder, config)
            model = build_model(config, facts).to(device).eval()
            epoch = load_best(folder, model, device).best_epoch
            fix = f"run python -m training.calibrate --run {run}"
        calibration, why = read_calibration(folder), ""
        if calibration is None or calibration.epoch != epoch:
            of = "no calibration.json" if calibration is None else f"a calibration of epoch {calibration.epoch}"
            why = f"{run} has {of} and a best checkpoint of epoch {epoch}: for intervals, {fix}"
            calibration = None
        if config.frame_decode == "gpu":
            log.warning(
                "%s was trained with --frame_decode gpu; frames are decoded on the CPU here, and pixels may differ by a level",
                run,
            )
        distances, why_no_distance = load(folder.novelty_file), ""
        if distances is None or distances.epoch != epoch:
            of = "no calibration.npz" if distances is None else f"a calibration.npz of epoch {distances.epoch}"
            why_no_distance = (
                f"{run} has {of} and a best checkpoint of epoch {epoch}, so it cannot decline a clip: {fix}"
            )
            distances = None
        return cls(
            config, model, facts, task_of(config.task), device, calibration, stored, why, distances, why_no_distance
        )

    # ------------------------------------------------------------------------------------------------------- samples

    @property
    def least(self) -> tuple[int, int] | None:
        """The size that archive.decode_image gets, so that new frames are decoded as those of the training."""
        return resized_size(self.config) if self.config.frame_decode == "scaled" else None

    def action(self, video: str, number: int, start: int, end: int, **known: Any) -> Action:
        """An action to score. `known` are fields of Action, and `dive_number`.

        Raises:
            UserError: its kind is not one of the training, or it is not known and there are several; or its difficulty or dive
                number is not known, which the method needs.
        """
        kinds = list(self.facts.rules)
        kind = known.pop("kind", None) or (kinds[0] if len(kinds) == 1 else "")
        if kinds and kind not in kinds:
            what = f"is of kind '{kind}'" if kind else "has no kind"
            raise UserError(
                f"{video} {what} and the network was trained on {', '.join(kinds)}: give one of these as --kind"
            )
        action = GivenAction(video, number, start, end, kind=kind, rules=self.facts.rules.get(kind), **known)
        if lacking := self._lacking(action):
            raise UserError(
                f"{video} has no {' and no '.join(lacking)}, which --method {self.config.method} of this run needs: give {' and '.join(f'--{name}' for name in lacking)}"
            )
        return action

    def _given(self, action: Action, **known: Any) -> Arrays | None:
        """What the method is given of an action with other values; None if it refuses it."""
        try:
            return self.model.method.given(dataclasses.replace(action, **known))
        except UserError:
            return None

    def _lacking(self, action: Action) -> list[str]:
        """The values that the method needs of an action, and that are not known."""
        absent = {name: value for name, value in _EXAMPLES.items() if getattr(action, name) is None}
        if self._given(action) is not None or self._given(action, **absent) is None:  # for another reason, told later
            return []
        return [name for name in absent if self._given(action, **{**absent, name: None}) is None]

    def unused(self, action: Action) -> list[str]:
        """The values of an action that are known, and that the method does not look at."""
        seen = self._given(action)
        without = {name: self._given(action, **{name: None}) for name in _EXAMPLES if getattr(action, name) is not None}
        return [
            name
            for name, given in without.items()
            if seen is not None and given is not None and all(np.array_equal(seen[n], given[n]) for n in seen)
        ]

    def frames_of(self, action: Action, video_frames: int, clips: int = 1) -> np.ndarray:
        """The numbers of the frames that the network reads of an action in a video of `video_frames` frames, ascending. Those of
        the view of validation are among them: explanations and distances are of it.

        Raises:
            UserError: the action lacks a value that the method needs, such as its difficulty.
        """
        numbers: set[int] = set()
        for choice in [*self._views(clips), VALIDATED]:
            source = FrameSource(self.config, _Numbers(video_frames), *choice)
            planned = self._data(action, source).plan(0, 0).sample.clips
            numbers.update(number for spec in planned.values() for number in spec.frames)
        if self.config.frame_method in END_ALIGNED:  # their plan depends on which of these exist
            numbers.update(range(action.end_frame + 1, min(action.end_frame + END_SHIFT, video_frames) + 1))
        return np.array(sorted(numbers), np.int64)

    def batch(self, clips: Sequence[Clip], *, view: ViewChoice = VALIDATED) -> Batch:
        """The batch of some clips: the frames, views and pixels of validation, or another view of them.

        Raises:
            UserError: a clip lacks a frame, or its action a value that the method needs.
        """
        rows = []
        for index, clip in enumerate(clips):
            data = self._data(clip.action, FrameSource(self.config, _FramesOfClip(clip), *view))
            rows.append(data.reader[data.plan(0, 0)]._replace(action_index=torch.tensor(index)))
        return default_collate(rows)

    def _views(self, clips: int) -> list[ViewChoice]:
        """The views whose mean is predicted: those of the run's test, or one crop of each of several clips."""
        if clips == 1 and (views := views_of_test(self.config)):
            return views
        return [ViewChoice(place) for place in places_of(clips)]

    def _data(self, action: Action, source: FrameSource) -> ActionDataset:
        return ActionDataset([action], self.config, self.model.method, augment=False, source=source, labelled=False)

    # --------------------------------------------------------------------------------------------------- predictions

    def predict(self, clips: Sequence[Clip], *, clips_each: int = 1) -> list[Prediction]:
        """The predictions of some clips, in batches of the size of validation: the means over the views of the run's test
        (--test_crops, --test_clips), or with `clips_each` above 1 over that many clips of each action, whose frames lie at other
        places.

        Raises:
            UserError: as `batch`.
        """
        if not clips:
            return []
        predicted: list[Arrays] = []
        details: list[dict[str, list]] = []
        distances: list[np.ndarray] = []
        size, method = evaluation_size(self.config), self.model.method
        for view in self._views(clips_each):
            indexed = []
            for start in range(0, len(clips), size):
                batch = self.batch(clips[start : start + size], view=view)
                batch = batch._replace(action_index=batch.action_index + start)
                indexed += forward_rows(self._forward, batch, self.config.precision, self.device)
            rows = in_order(indexed)
            described = {name: rows.outputs.pop(_DESCRIBED + name).numpy() for name in self._described}
            # the training's distances are those of centre crops of the usual size
            if self.novelty is not None and not view.crop and not self.config.full_res:
                distances.append(self.novelty.distances(described))
            predicted.append(as_arrays(method.predict(rows.outputs, rows.given)))
            details.append(method.details(rows.outputs))
        if self.novelty is not None and self.config.full_res:
            distances = [self.distances(clips)]
        of_views = {name: np.stack([each[name] for each in predicted], axis=1) for name in predicted[0]}
        mean = self.task.mean_of_views(of_views, self.config.test_average)
        together_each = {name: together([d[name] for d in details]) for name in details[0]}
        return self._predictions(clips, mean, together_each, np.mean(distances, axis=0) if distances else None)

    @property
    def _described(self) -> Sequence[str]:
        return () if self.novelty is None else tuple(self.novelty.spreads)

    def _forward(self, batch: Batch) -> Tensors:
        """The outputs of the model and, named apart, the descriptions for the distance."""
        if self.novelty is None:
            return self.model(batch)
        outputs, described = outputs_and_descriptions(self.model, batch)
        return outputs | {_DESCRIBED + name: described[name] for name in self._described}

    def distances(self, clips: Sequence[Clip]) -> np.ndarray:
        """The distances of some clips from those of the training, (clips,), without their predictions. A clip whose picture alone
        is beyond the limit is not given to the network.

        Raises:
            UserError: as `batch`, or the run has no distances.
        """
        if self.novelty is None:
            raise UserError(self.why_no_distance)
        found = np.full(len(clips), np.inf)
        size, picture = evaluation_size(self.config), self.novelty.spreads["picture"]
        near: list[int] = []
        for index, clip in enumerate(clips):
            statistics = picture_statistics(self.batch([clip]).clips["clip"]).double().numpy()
            found[index] = picture.distances(statistics)[0]
            if found[index] <= LIMIT:
                near.append(index)
        for start in range(0, len(near), size):
            rows = near[start : start + size]
            batch = self.batch([clips[row] for row in rows])
            described = in_order(
                forward_rows(lambda loaded: describe(self.model, loaded), batch, self.config.precision, self.device)
            )
            found[rows] = self.novelty.distances({name: t.numpy() for name, t in described.outputs.items()})
        return found

    def _predictions(
        self, clips: Sequence[Clip], predicted: Arrays, details: dict[str, list], distances: np.ndarray | None
    ) -> list[Prediction]:
        limits = np.full(len(clips), np.inf)
        if self.calibration is not None:
            limits = self.calibration.limits([clip.action.kind for clip in clips], predicted)
        noun = Action.noun if self.novelty is None else self.novelty.noun
        regions = self.task.region(predicted, limits, self.facts.classes)
        found = []
        for row, (clip, values, region) in enumerate(
            zip(clips, self.task.values(predicted, self.facts.classes), regions, strict=True)
        ):
            more = {name: column[row] for name, column in details.items()}
            low, high, classes = region.get("low"), region.get("high"), region.get("classes")
            if low is not None and clip.action.rules is not None:
                low = max(low, clip.action.rules.low)
            distance = None if distances is None else float(distances[row])
            found.append(
                Prediction(
                    clip.name or clip.action.name, clip.action.start_frame, clip.action.end_frame, values | more,
                    low, high, None if classes is None else tuple(classes),
                    declined=distance is not None and not distance <= LIMIT,
                    distance=distance, threshold=None if distance is None else LIMIT, noun=noun,
                )
            )  # fmt: skip
        return found


def places_of(clips: int) -> list[float]:
    """The places (sampling.clip_frames) of several clips of an action, evenly spread; of one, the middle."""
    return [(index + 0.5) / clips for index in range(clips)]


def together(columns: Sequence[list]) -> list:
    """One value for each action from those of several clips: the mean of numbers, the most frequent of words."""
    return [
        float(np.mean(values)) if isinstance(values[0], float) else Counter(values).most_common(1)[0][0]
        for values in zip(*columns, strict=True)
    ]


def cannot_score(folder: RunFolder, config: TrainConfig) -> str | None:
    """Why a run cannot score videos, or None."""
    if not task_of(config.task).has_test:
        return f"{folder.path} is a pretraining, which scores nothing: give the run of a training that started from it"
    if config.reads != "video":
        return f"{folder.path} reads features of the file {config.features}, not frames: give a run that was trained on frames"
    if not folder.best_checkpoint.exists() and not pretrained.is_exported(folder.path):
        return f"{folder.path} has no best checkpoint yet ({folder.best_checkpoint}): train it for at least one epoch"
    return None


def facts_of_run(folder: RunFolder, config: TrainConfig) -> tuple[DataFacts, StoredFrames]:
    """The facts of the data of a run, and how its frames are stored: from data.json, else from the annotations and frames.

    Raises:
        UserError: data.json is damaged; or there is none, and the data cannot be read.
    """
    record = read_json(folder.facts_file)
    try:
        facts = load_splits(config).facts if record is None else DataFacts.from_record(record)
        frames = (record or {}).get("frames")
        if frames is not None:
            return facts, StoredFrames(**frames)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{folder.facts_file} is damaged ({type(error).__name__}: {error}): delete it, and start the finished training again, which writes it"
        ) from None
    archives = sorted(config.root_dir.glob("*.zip")) if config.root_dir.is_dir() else []
    found = FrameSource(config).stored_frames([Action(archives[0].stem, 1, 1, 1)]) if archives else None
    if found is None:
        log.warning(
            "%s does not say how the frames of the training are stored, and %s has no archive that says it: new videos get the height %d and the JPEG quality %d; if these are wrong, start the finished training again, which writes it",
            folder.facts_file, config.root_dir, StoredFrames.height, StoredFrames.quality,
        )  # fmt: skip
    return facts, found or StoredFrames()
