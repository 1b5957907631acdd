"""Write which frames and pixels of a drawn data set decide the score or the class: the truth that explanations are graded with.

    python -m data_preparation.synthetic.decisive --dataset DIR

    DIR/annotations/decisive_boxes.json    {"width", "height" (of the videos), "actions": {NAME: {FRAME: box}}}

NAME is that of the action, FRAME counts from 1 in its video, a box is left, top, right, bottom in pixels. Frames without a box do
not decide. In a dive the last part of the flight and all that follows decides: the angle of entry, the distance from the board,
the splash. A box holds diver and splash. In a clip the frames decide that decisive.json names, and a box holds the figure.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ImageChops
from tqdm import tqdm

from data_preparation.actions import Dive, action_name
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.layout import DatasetLayout, dataset_layout
from data_preparation.synthetic import clips, dives
from data_preparation.synthetic.canvas import random_stream
from data_preparation.synthetic.diver import Board, Stage, make_performance

Box = tuple[int, int, int, int]  # left, top, right, bottom

FILE = "decisive_boxes.json"  # in the folder of the annotations
COMMAND = "python -m data_preparation.synthetic.decisive"
LEAST_CHANGE = 12  # of a colour channel: a pixel that differs less from the empty scenery is not part of the box


class DecisiveBoxes(NamedTuple):
    """The content of decisive_boxes.json: `boxes` by action name and frame."""

    width: int
    height: int
    boxes: dict[str, dict[int, Box]]


def read_decisive(path: Path) -> DecisiveBoxes:
    """Read a file that this command wrote.

    Raises:
        UserError: there is no such file, or its content has another form.
    """
    try:
        content = json.loads(path.read_bytes())
        boxes = {
            name: {int(frame): _box(box) for frame, box in of_action.items()}
            for name, of_action in content["actions"].items()
        }
        return DecisiveBoxes(int(content["width"]), int(content["height"]), boxes)
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist: write it for a drawn data set ({COMMAND} --dataset {path.parent.parent})"
        ) from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{path} cannot be read as {FILE}: write it again with {COMMAND}") from None


def _box(values: Sequence[int]) -> Box:
    left, top, right, bottom = map(int, values)
    return left, top, right, bottom


def dive_boxes(stage: Stage, dive: Dive, board: Board, rng: np.random.Generator) -> dict[int, Box]:
    """The boxes of one dive, by frame of its video. `rng` is the one that the dive is drawn with."""
    performed = make_performance(dive, board, rng)
    last = max(dive.frame_count - 1, 1)
    boxes = {}
    for index in range(math.ceil(performed.decisive[0] * last), dive.frame_count):
        drawn, empty = (stage.dive_frame(performed, index / last, performer=shown) for shown in (True, False))
        changed = ImageChops.difference(drawn, empty).point(lambda value: 255 * (value >= LEAST_CHANGE))
        if (found := changed.getbbox()) is not None:
            boxes[dive.start_frame + index] = found
    return boxes


def clip_boxes(film: clips.Film) -> dict[int, Box]:
    """The boxes of one labelled clip, by frame."""
    first, last = film.decisive()
    limits = (film.config.width, film.config.height)
    boxes = {}
    for index in range(first, last + 1):
        corners = film.quad(index)
        low, high = (np.clip(corner, 0, limits) for corner in (corners.min(axis=0), corners.max(axis=0)))
        boxes[index + 1] = _box([*np.floor(low).astype(int), *np.ceil(high).astype(int)])
    return boxes


@dataclass(frozen=True)
class DecisiveConfig:
    """Write which frames and pixels of a drawn data set decide the score or the class."""

    dataset: Path | None = flag(None, "Folder of a drawn data set; none uses DEEPSPORTS_DATASET.")


def drawn_with(layout: DatasetLayout) -> tuple[type[Any], dict[str, Any]]:
    """The flags that a drawn data set was made with: their dataclass and values.

    Raises:
        UserError: the folder holds no drawn data set, one of other code, or one that imitates an annotation file.
    """
    path = layout.synthetic_file
    try:
        record = json.loads(path.read_bytes())
        flags, like, drawing = record["flags"], record.get("like_sha256"), record["drawing"]
        of_clips = "task" in flags
    except FileNotFoundError:
        raise UserError(
            f"{layout.root} does not hold a drawn data set ({path.name} is missing): give the folder of one, which python -m data_preparation.synthetic writes"
        ) from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged: draw the data set again") from None
    if like:
        raise UserError(
            f"{layout.root} was drawn with --like, so its truth is not known: draw a data set without --like"
        )
    if drawing != (clips if of_clips else dives).DRAWING:
        raise UserError(f"{layout.root} was drawn by another version of the code: draw the data set again")
    return (clips.ClipsConfig if of_clips else dives.SyntheticConfig), flags


def all_boxes(config: Any) -> Iterator[tuple[str, Callable[[], dict[int, Box]]]]:
    """(name of an action, a function that computes its boxes) for each action of the set that these flags draw."""
    if isinstance(config, clips.ClipsConfig):
        for clip in clips.make_plan(config):
            yield action_name((clip.name, 1)), partial(_boxes_of_plan, config, clip)
        return
    for plan in dives.make_plan(config):
        stage = dives.make_stage(config, plan.video)
        for dive, board in zip(plan.dives, plan.boards, strict=True):
            yield (
                dive.name,
                partial(dive_boxes, stage, dive, board, random_stream(config.seed, dives.PICTURE, *dive.key)),
            )


def _boxes_of_plan(config: clips.ClipsConfig, plan: clips.ClipPlan) -> dict[int, Box]:
    return clip_boxes(clips.Film(config, plan))


def decisive_boxes(config: Any) -> DecisiveBoxes:
    """The decisive boxes of the set that the flags of dives.SyntheticConfig or clips.ClipsConfig draw."""
    progress: Iterable = tqdm(list(all_boxes(config)), desc="drawing", unit="action", disable=not sys.stderr.isatty())
    return DecisiveBoxes(config.width, config.height, {name: compute() for name, compute in progress})


def write_decisive(path: Path, found: DecisiveBoxes) -> None:
    """Write the file atomically."""
    content = {"width": found.width, "height": found.height, "actions": found.boxes}
    with reporting_write_errors(path):
        write_atomic(path, (json.dumps(content) + "\n").encode())


def main(argv: Sequence[str]) -> None:
    layout = dataset_layout(parse(DecisiveConfig, argv, COMMAND).dataset)
    flags_class, flags = drawn_with(layout)
    found = decisive_boxes(flags_class(**flags))
    path = layout.annotations / FILE
    write_decisive(path, found)
    print(f"{len(found.boxes)} actions, {sum(map(len, found.boxes.values()))} decisive frames: {path}")


if __name__ == "__main__":
    run(main)
