"""Grade explanations against the truth of drawn data: do maps and curves point to what decides the score or the class?

    python -m data_preparation.synthetic.decisive --dataset DIR             # writes the truth of a drawn data set, once
    python -m training.grade_explanations --run runs/A-s0 runs/A-s1 ...

The actions are those of validation, so the test split stays closed. For each kind of map that the network offers the table has

    place     the pointing game ("Top-down Neural Attention by Excitation Backprop", Zhang et al., ECCV 2016): how often the largest
              value of a clip's map, over all its frames, lies in a decisive box, or at most 15/224 of the frame's side beside it
    moment    how often the frame with the largest sum of the map is decisive; of "hidden frames", which has no map, how often the
              frame is whose hiding changes the prediction most

with 95 % intervals (Wilson), for the trained weights, for random initial weights, and for chance: the share of pixels and frames that
count as hits. Every eight clips get new random weights, because the maps of one random network may all have their
largest value at the same place.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from data_preparation.actions import Action, sort_key
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.synthetic.decisive import FILE, Box, DecisiveBoxes, read_decisive
from training.config import TrainConfig
from training.data.dataset import ActionDataset
from training.data.plan import View
from training.data.splits import Splits, load_splits
from training.engine.prediction import Predictor, to_device
from training.explain.maps import attribution, effects_of_frames, kinds, number_of, predicted
from training.model import ScoringModel, build_model
from training.runtime import checkpoint, collectives
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.tasks.label import wilson_interval

TOLERANCE = 15 / 224  # of the frame's side
HIDDEN = "hidden frames"
TRAINED, RANDOM, CHANCE = "trained", "random", "chance"
GRADED = "execution"  # the quantity that is graded, where a method predicts it; else its first one
BATCH = 8


class Hits(NamedTuple):
    """How many of `clips` clips are hit; `place` is None for curves without maps."""

    place: int | None
    moment: int
    clips: int


class Line(NamedTuple):
    """A row of the table: shares of hits with their intervals; chance has none."""

    run: str
    kind: str
    weights: str
    place: tuple[float, ...] | None  # share, low, high
    moment: tuple[float, ...]


# --------------------------------------------------------------------------------------------------------------- truth


def decisive_pixels(boxes: dict[int, Box], frames: Sequence[int], view: View, height: int, width: int) -> np.ndarray:
    """The pixels (T, H, W) bool of a clip's input that lie in a decisive box of videos of `height` x `width` pixels."""
    out_height, out_width = view.size
    found = np.zeros((len(frames), out_height, out_width), bool)
    for index, frame in enumerate(frames):
        if (box := boxes.get(frame)) is None:
            continue
        corners = view.points(np.array(box, np.float64).reshape(2, 2), height, width)
        (left, top), (right, bottom) = np.floor(corners.min(axis=0)), np.ceil(corners.max(axis=0))
        found[index, max(int(top), 0) : max(int(bottom), 0), max(int(left), 0) : max(int(right), 0)] = True
    return found


def widened(pixels_BTHW: np.ndarray) -> np.ndarray:
    """The pixels that are at most TOLERANCE of the frame's side away from those."""
    reach = round(TOLERANCE * pixels_BTHW.shape[2])
    near = F.max_pool2d(torch.from_numpy(pixels_BTHW).float(), 2 * reach + 1, 1, reach)
    return near.numpy() > 0


def count_hits(maps_BTHW: np.ndarray | None, moments_BT: np.ndarray, pixels_BTHW: np.ndarray) -> Hits:
    """The hits of maps and of the strongest of moments, which are not negative. A map or curve of one value hits nothing."""
    rows = np.arange(len(pixels_BTHW))

    def hit(values_BN: np.ndarray, decisive_BN: np.ndarray) -> int:
        says_something = values_BN.max(axis=1) > values_BN.min(axis=1)
        return int((decisive_BN[rows, values_BN.argmax(axis=1)] & says_something).sum())

    moment = hit(moments_BT, np.asarray(pixels_BTHW.any(axis=(2, 3))))
    flat = (len(rows), -1)
    place = None if maps_BTHW is None else hit(maps_BTHW.reshape(flat), widened(pixels_BTHW).reshape(flat))
    return Hits(place, moment, len(rows))


# -------------------------------------------------------------------------------------------------------------- grading


@dataclass(frozen=True)
class Graded:
    """The clips of a run that are graded, and their truth."""

    data: ActionDataset
    pixels_NTHW: np.ndarray

    def batches(self, device: torch.device) -> Iterator[tuple]:
        """(batch, decisive pixels) of BATCH clips each."""
        for start in range(0, len(self.data), BATCH):
            rows = range(start, min(start + BATCH, len(self.data)))
            loaded = self.data.reader.__getitems__([self.data.plan(0, index) for index in rows])
            yield to_device(loaded.finish(device), device), self.pixels_NTHW[start : start + BATCH]


def graded_clips(config: TrainConfig, splits: Splits, model: ScoringModel, truth: DecisiveBoxes, most: int) -> Graded:
    """At most `most` validation actions, evenly spread over their keys, with their decisive pixels.

    Raises:
        UserError: the truth is that of other actions.
    """
    actions = sorted(splits.val, key=lambda action: sort_key(action.key))
    actions = [actions[i * len(actions) // min(most, len(actions))] for i in range(min(most, len(actions)))]
    if unknown := [action.name for action in actions if action.name not in truth.boxes]:
        raise UserError(
            f"{FILE} lacks {unknown[0]}: give the file of the data set that the run was trained on as --truth"
        )
    data = ActionDataset(actions, config, model.method, augment=False, pool=splits.known)
    pixels = []
    for index, action in enumerate(actions):
        spec = data.plan(0, index).sample.clips["clip"]
        assert spec.view is not None
        pixels.append(decisive_pixels(truth.boxes[action.name], spec.frames, spec.view, truth.height, truth.width))
    return _seen(data, np.stack(pixels))


def _seen(data: ActionDataset, pixels_NTHW: np.ndarray) -> Graded:
    """Without clips of which no frame and pixel that decides is in the input."""
    seen = np.asarray(pixels_NTHW.any(axis=(1, 2, 3)))
    kept: list[Action] = [action for action, is_seen in zip(data.actions, seen, strict=True) if is_seen]
    if not kept:
        raise UserError("no clip of this run shows a decisive frame: choose another run")
    return Graded(data.without({a.key for a in data.actions} - {a.key for a in kept}), pixels_NTHW[seen])


def grade(
    networks: Callable[[int], ScoringModel], clips: Graded, device: torch.device, title: str, only: Sequence[str]
) -> dict[str, Hits]:
    """The hits of each kind of map that a network offers, and of hidden frames. `networks(i)` explains batch i."""
    found: dict[str, list[Hits]] = {}
    total = -(-len(clips.data) // BATCH)
    bar = tqdm(clips.batches(device), title, total, unit="batch", disable=not sys.stderr.isatty())
    for index, (batch, pixels) in enumerate(bar):
        model = networks(index)
        video = model.prepare(batch.clips["clip"])
        explained = list(predicted(model, batch, video))
        quantity, _, chosen = next((e for e in explained if e[0] == GRADED), explained[0])
        number = number_of(model, batch, quantity, chosen)
        for kind in kinds(model, video):
            if not only or kind in only:
                maps = attribution(kind, model, number, video).cpu().numpy()
                found.setdefault(kind, []).append(count_hits(maps, maps.sum(axis=(2, 3)), pixels))
        if not only or HIDDEN in only:
            effects = effects_of_frames(model, number, video).abs().numpy()
            found.setdefault(HIDDEN, []).append(count_hits(None, effects, pixels))
    return {kind: added(parts) for kind, parts in found.items()}


def added(parts: Sequence[Hits]) -> Hits:
    """The sum of the hits of several sets of clips."""
    places = [part.place for part in parts if part.place is not None]
    return Hits(sum(places) if places else None, sum(p.moment for p in parts), sum(p.clips for p in parts))


def lines_of(run: str, weights: str, hits: dict[str, Hits]) -> list[Line]:
    """The rows of one network."""

    def share(hit: int, clips: int) -> tuple[float, ...]:
        return hit / clips, *wilson_interval(hit, clips)

    return [
        Line(run, kind, weights, None if h.place is None else share(h.place, h.clips), share(h.moment, h.clips))
        for kind, h in hits.items()
    ]


def grade_run(path: Path, options: GradeConfig, device: torch.device) -> list[Line]:
    """The rows of one run: of each kind of map with trained and with random weights, and chance."""
    folder = RunFolder(path)
    config = dataclasses.replace(folder.existing_config(), pretrained_model="none")
    if config.reads != "video":
        raise UserError(f"{path} reads features, so no pixel can explain it: give a run that was trained on frames")
    if not folder.best_checkpoint.exists():
        raise UserError(f"{path} has no best checkpoint yet: train it for at least one epoch")
    truth = read_decisive(options.truth or config.annotation_path.parent / FILE)
    splits = load_splits(config)
    best = checkpoint.load(folder.best_checkpoint, device, required={"model"})

    def network(seed: int) -> ScoringModel:
        return build_model(dataclasses.replace(config, seed=seed), splits.facts).to(device).eval()

    trained = network(config.seed)
    trained.load_state_dict(best["model"])
    clips = graded_clips(config, splits, trained, truth, options.clips)

    def random(index: int) -> ScoringModel:
        model = network(config.seed + index)
        Predictor(config, Ranks(), device).encode_references(model, clips.data.references)
        return model

    lines = []
    for weights, networks in ((TRAINED, lambda _: trained), (RANDOM, random)):
        hits = grade(networks, clips, device, f"{folder.title}, {weights}", options.kinds)
        lines += lines_of(folder.title, weights, hits)
    place = float(widened(clips.pixels_NTHW).mean())
    moment = float(clips.pixels_NTHW.any(axis=(2, 3)).mean())
    return [*lines, Line(folder.title, "", CHANCE, (place,), (moment,))]


def markdown(lines: Sequence[Line]) -> list[str]:
    """The table: the rows of a kind of map follow one another."""

    def text(share: tuple[float, ...] | None) -> str:
        if share is None:
            return ""
        value, *interval = (f"{100 * x:.0f}" for x in share)
        return f"{value} %" + (f" ({interval[0]} to {interval[1]})" if interval else "")

    rows = ["| run | kind of map | weights | place | moment |", "|---|---|---|---|---|"]
    for of_run in dict.fromkeys(line.run for line in lines):
        mine = [line for line in lines if line.run == of_run]
        kinds_found = dict.fromkeys(line.kind for line in mine)
        for line in sorted(mine, key=lambda line: list(kinds_found).index(line.kind)):
            rows.append(f"| {line.run} | {line.kind} | {line.weights} | {text(line.place)} | {text(line.moment)} |")
    return rows


def means(lines: Sequence[Line]) -> list[Line]:
    """Over several runs: the mean share of each kind of map and weights, with the least and the largest of a run."""
    found = []
    for kind, weights in dict.fromkeys((line.kind, line.weights) for line in lines):
        same = [line for line in lines if (line.kind, line.weights) == (kind, weights)]

        def spread(shares: list[float]) -> tuple[float, ...]:
            return float(np.mean(shares)), min(shares), max(shares)

        places = [line.place[0] for line in same if line.place is not None]
        moments = [line.moment[0] for line in same]
        found.append(
            Line(
                f"mean of {len(same)} (least to largest)",
                kind,
                weights,
                spread(places) if places else None,
                spread(moments),
            )
        )
    return found


@dataclass(frozen=True)
class GradeConfig:
    """Grade explanations of runs on drawn data against the truth."""

    run: tuple[Path, ...] = flag((), "Run folders.")
    truth: Path | None = flag(None, f"File of the truth; none means {FILE} beside the annotations of the run.")
    clips: int = flag(100, "Validation actions that are graded, at most.", minimum=1)
    kinds: tuple[str, ...] = flag(
        (), f"Kinds of maps to grade, or '{HIDDEN}'; none given means all that the network offers."
    )
    gpu: bool = flag(True, "Use the GPU if there is one.")

    def __post_init__(self) -> None:
        if not self.run:
            raise UserError("--run is missing: give run folders, such as runs/default")


def main(argv: Sequence[str]) -> None:
    options = parse(GradeConfig, argv, prog="python -m training.grade_explanations")
    device = collectives.choose_device(options.gpu, Ranks())
    lines = [line for path in options.run for line in grade_run(path, options, device)]
    print("\n".join(markdown(lines)))
    if len(options.run) > 1:
        print("\n" + "\n".join(markdown(means(lines))))


if __name__ == "__main__":
    run(main)
