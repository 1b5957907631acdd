"""Write a drawn set of labelled clips: falls in figure skating (--task fall) or everyday actions (--task actions).

    python -m data_preparation.synthetic --task fall --dataset DIR
    python -m data_preparation.synthetic --task fall --skaters 2 --width 160 --dataset DIR
    python -m data_preparation.synthetic --task actions --sheet actions.png

    DIR/whole_videos/NAME.mp4    one clip each, H.264, 15 frames per second
    DIR/annotations/             table.csv (video, start_frame, end_frame, label, group: the performer), classes.txt,
                                 train_split_0.pkl, test_split_0.pkl: performers of one list are not in the other,
                                 decisive.json (NAME -> the frames that decide the class, and the box that holds the
                                 figure in all of them: left, top, right, bottom), synthetic.json (the flags of this set)
    DIR/boxes/NAME.csv           a rectangle around the figure for each frame (boxes.py)

With --skaters 2 each clip shows two skaters, and only one of them counts: label, boxes and decisive.json are of that one, and
nothing but the boxes tells which it is. Both are in the same list.

Boxes are in pixels of the video. All random numbers are a function of (seed, clip), those of looks a function of (seed,
performer): the same flags give the same bytes with any number of workers. A second call with the same flags makes only the
missing clips.
"""

from __future__ import annotations

import dataclasses
import json
import math
import pickle
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data_preparation.boxes import Boxes, boxes_file, write_boxes
from data_preparation.common.command_line import flag, parse
from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_file, write_atomic
from data_preparation.layout import DatasetLayout, default_dataset
from data_preparation.synthetic import movements, skating
from data_preparation.synthetic.cameras import sample_camera
from data_preparation.synthetic.canvas import (
    SUPERSAMPLE,
    TASKS,
    Point,
    claim,
    encode_video,
    odd_size_faults,
    random_stream,
    write_missing,
)
from data_preparation.synthetic.figure import Figure, draw_figure, place, quad, sample_looks
from data_preparation.text_tables import CLASS_NAMES

DRAWING = 1  # increase when the same flags give other pixels or labels
TEST_FRACTION = 0.25
SOFT_EDGE = 1.0  # pixels that boxes are wider on each side: averaging blurs the figure's edge
SCENES: dict[str, ModuleType] = {"fall": skating, "actions": movements}

# purposes of the random streams
PLAN, LENGTH, LOOKS, SCENERY, CLASSES, SPLIT, COMPANION = range(100, 107)
CAMERA, NOISE = range(108, 110)  # 107 is detector.DETECTOR


@dataclass(frozen=True)
class ClipsConfig:
    """Write a drawn set of labelled clips: falls in figure skating, or everyday actions."""

    task: str = flag("fall", "What is drawn.", choices=TASKS)
    dataset: Path | None = flag(None, "Folder to write; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    clips: int = flag(600, "Number of clips.", minimum=2)
    performers: int = flag(40, "Number of performers; a quarter of them is for testing.", minimum=2)
    skaters: int = flag(
        1,
        "Skaters in each clip of --task fall. Of two, only the one with the boxes decides the label.",
        minimum=1,
        maximum=2,
    )
    cameras: str = flag(
        "alike",
        "varied gives each performer a camera of its own: other light, contrast and colours, and noise.",
        choices=("alike", "varied"),
    )
    width: int = flag(72, "Width of the videos in pixels (even).", minimum=32)
    height: int = flag(72, "Height of the videos in pixels (even).", minimum=32)
    fps: int = flag(15, "Frames per second.", minimum=1)
    min_frames: int = flag(32, "Frames of the shortest clip.", minimum=16)
    max_frames: int = flag(44, "Frames of the longest clip.", minimum=16)
    workers: int = flag(2, "Worker processes, one clip each.", minimum=1)
    seed: int = flag(0, "Random seed.", minimum=0)
    sheet: Path | None = flag(None, "Write only a labelled contact sheet of a few clips, to this PNG file.")

    def __post_init__(self) -> None:
        faults = odd_size_faults(self.width, self.height)
        if self.min_frames > self.max_frames:
            faults.append(
                f"--min_frames {self.min_frames} is greater than --max_frames {self.max_frames}: give a smaller --min_frames"
            )
        if self.skaters > 1:
            faults += self._pair_faults()
        least = self.performers * len(SCENES[self.task].PATTERN)
        if self.clips < least:
            faults.append(
                f"--clips {self.clips} is too few for --performers {self.performers}: give {least} or more, "
                "so that each performer shows each class"
            )
        if faults:
            raise UserError.of(faults)

    def _pair_faults(self) -> list[str]:
        faults = []
        if SCENES[self.task] is not skating:
            faults.append(f"--skaters {self.skaters} is for --task fall only: leave it out")
        if self.width < skating.PAIR_WIDTH * self.height:
            wide = 2 * math.ceil(skating.PAIR_WIDTH * self.height / 2)
            faults.append(f"--width {self.width} is too narrow for --skaters {self.skaters}: give {wide} or more")
        if _tested(self.performers) < 2:
            faults.append(
                f"--performers {self.performers} is too few for --skaters {self.skaters}: give 6 or more, "
                "so that each list has two"
            )
        return faults


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class ClipPlan:
    """One clip."""

    clip: int  # from 1
    performer: int  # from 1
    label: str
    frames: int
    name: str  # of the video
    group: str
    companion: int = 0  # the performer who also skates; 0 for nobody


def make_plan(config: ClipsConfig) -> list[ClipPlan]:
    """Plan all clips. Performers have nearly equal numbers of clips, and nearly the same shares of the classes."""
    tested = _test_performers(config.performers, random_stream(config.seed, SPLIT))
    scene = SCENES[config.task]
    rounds = math.ceil(config.clips / config.performers)
    labels = [_labels(config, performer, rounds) for performer in range(config.performers)]
    plans = []
    for index in range(config.clips):
        number, performer = divmod(index, config.performers)
        length = random_stream(config.seed, LENGTH, index + 1).integers(config.min_frames, config.max_frames + 1)
        group = f"{scene.PERFORMER}{performer + 1:0{len(str(config.performers))}d}"
        name = f"{group}_{number + 1:0{len(str(rounds))}d}"
        plan = ClipPlan(index + 1, performer + 1, labels[performer][number], int(length), name, group)
        plans.append(plan if config.skaters == 1 else replace(plan, companion=_companion(config, plan, tested)))
    return plans


def _companion(config: ClipsConfig, plan: ClipPlan, tested: set[int]) -> int:
    """Another performer of the same list."""
    others = [
        performer
        for performer in range(1, config.performers + 1)
        if performer != plan.performer and (performer in tested) == (plan.performer in tested)
    ]
    return int(random_stream(config.seed, COMPANION, plan.clip).choice(others))


def _labels(config: ClipsConfig, performer: int, rounds: int) -> list[str]:
    """The classes of a performer's clips, in random order. Whole patterns come first, so that the shares are kept."""
    pattern: Sequence[str] = SCENES[config.task].PATTERN
    rng = random_stream(config.seed, CLASSES, performer)
    drawn: list[str] = []
    while len(drawn) < rounds:
        drawn += [pattern[i] for i in rng.permutation(len(pattern))]
    return drawn[:rounds]


def _tested(performers: int) -> int:
    """How many performers are for testing."""
    return min(max(round(TEST_FRACTION * performers), 1), performers - 1)


def _test_performers(performers: int, rng: np.random.Generator) -> set[int]:
    """The performers who are for testing, from 1."""
    return {int(i) + 1 for i in rng.permutation(performers)[: _tested(performers)]}


def split_plans(plans: Sequence[ClipPlan], seed: int) -> tuple[list[ClipPlan], list[ClipPlan]]:
    """(train, test), both shuffled: a quarter of the performers is for testing."""
    performers = len({plan.performer for plan in plans})
    rng = random_stream(seed, SPLIT)
    tested = _test_performers(performers, rng)
    shuffled = [plans[i] for i in rng.permutation(len(plans))]
    return [p for p in shuffled if p.performer not in tested], [p for p in shuffled if p.performer in tested]


# -------------------------------------------------------------------------------------------------------------- frames


class Film:
    """The drawing of one clip: `frame(k)` and `quad(k)` for k from 0."""

    def __init__(self, config: ClipsConfig, plan: ClipPlan) -> None:
        scene = SCENES[config.task]
        self.config, self.plan, self.frames = config, plan, plan.frames
        self.size = (config.width * SUPERSAMPLE, config.height * SUPERSAMPLE)
        self.scale = self.size[1] / scene.FRAME_METRES  # pixels of the drawing per metre
        self.performance = scene.perform(plan.label, self._stream(PLAN))
        times = [k / max(plan.frames - 1, 1) for k in range(plan.frames)]
        self.figures = self._place(self.performance, plan.performer, times)
        self.companion = skating.accompany(self.performance, self._stream(COMPANION, 1)) if plan.companion else None
        self.companions = self._place(self.companion, plan.companion, times) if self.companion else []
        varied = config.cameras == "varied"
        self.camera = sample_camera(random_stream(config.seed, CAMERA, plan.performer)) if varied else None
        half = self.size[0] / 2 / self.scale
        self.cameras = [(x - half, y) for x, y in (self._camera_at(t) for t in times)]
        self.left = min(x for x, _ in self.cameras)
        self.bottom = min(y for _, y in self.cameras) - 1 / self.scale

    def _stream(self, purpose: int, number: int = 0) -> np.random.Generator:
        """The random generator of one purpose for this clip."""
        return random_stream(self.config.seed, purpose, self.plan.clip, number)

    def _place(self, performance: Any, performer: int, times: Sequence[float]) -> list[Figure]:
        """The figure of a performer at each time."""
        blades = SCENES[self.config.task] is skating
        looks = sample_looks(random_stream(self.config.seed, LOOKS, performer), blades=blades)
        return [place(performance.stand_at(t), looks) for t in times]

    def _camera_at(self, t: float) -> Point:
        if self.companion is None:
            return self.performance.camera_at(t)
        return skating.shared_camera(self.performance, self.companion, t)

    @cached_property
    def scenery(self) -> Image.Image:
        """All that the camera sees of the surroundings in this clip."""
        spans = [max(c) - min(c) for c in zip(*self.cameras, strict=True)]
        width, height = (math.ceil(size + span * self.scale) + 2 for size, span in zip(self.size, spans, strict=True))
        image = Image.new("RGB", (width, height))
        SCENES[self.config.task].scenery(image, self.left, self.bottom, self.scale, self._stream(SCENERY))
        return image

    def frame(self, index: int, figure: bool = True) -> Image.Image:
        """The frame with this index, with all shadows, and with the figure that counts unless `figure` is False."""
        width, height = self.size
        left, lower = self._corner(index)
        upper = self.scenery.height - lower - height
        image = self.scenery.crop((left, upper, left + width, upper + height))
        draw = ImageDraw.Draw(image)
        shown = [self.figures[index]] if figure else []
        companions = self.companions[index : index + 1]
        for each in (self.figures[index], *companions):
            self._draw_shadow(draw, index, each)
        # the last one is in front
        for each in shown + companions if self.companion and self.companion.in_front else companions + shown:
            draw_figure(draw, each, partial(self._to_pixels, index), self.scale)
        image = image.reduce(SUPERSAMPLE)
        return self.camera.shows(image, self._stream(NOISE, index)) if self.camera else image

    def quad(self, index: int) -> np.ndarray:
        """The corners (4, 2) of the rectangle around the figure that counts, in pixels of the video, clockwise if the figure stands."""
        corners = quad(self.figures[index])
        pixels = np.array([self._to_pixels(index, (x, y)) for x, y in corners.tolist()]) / SUPERSAMPLE
        width, height = pixels[1] - pixels[0], pixels[2] - pixels[1]
        across, down = (SOFT_EDGE * side / np.hypot(*side) for side in (width, height))
        return pixels + np.stack([-across - down, across - down, across + down, down - across])

    def decisive(self) -> tuple[int, int]:
        """The first and last frame index that decide the class."""
        first, last = self.performance.decisive
        return math.ceil(first * (self.frames - 1)), math.floor(last * (self.frames - 1))

    def _corner(self, index: int) -> tuple[int, int]:
        """The pixel of the scenery at the frame's lower left corner, counted from its own lower left corner."""
        x, y = self.cameras[index]
        return round((x - self.left) * self.scale), round((y - self.bottom) * self.scale)

    def _to_pixels(self, index: int, point: Point) -> Point:
        left, lower = self._corner(index)
        x, y = (point[0] - self.left) * self.scale - left, (point[1] - self.bottom) * self.scale - lower
        return x, self.size[1] - y

    def _draw_shadow(self, draw: ImageDraw.ImageDraw, index: int, figure: Figure) -> None:
        joints = figure.joints
        x0, y0 = self._to_pixels(index, (joints[:, 0].min(), 0.03))
        x1, y1 = self._to_pixels(index, (joints[:, 0].max(), -0.06))
        draw.ellipse((x0, y0, x1, y1), fill=(96, 104, 112))


def render(config: ClipsConfig, plan: ClipPlan) -> Iterator[Image.Image]:
    """Yield the frames of one clip in order."""
    film = Film(config, plan)
    for index in range(plan.frames):
        yield film.frame(index)


def write_clip(config: ClipsConfig, plan: ClipPlan, path: Path, progress: Callable[[], None]) -> None:
    """Encode one clip and write it atomically. Calls `progress()` for each frame."""
    encode_video(render(config, plan), path, (config.width, config.height), config.fps, progress)


# ---------------------------------------------------------------------------------------------------- annotation files


def clip_boxes(config: ClipsConfig, film: Film) -> Boxes:
    """The rectangle around the figure in each frame."""
    corners = np.stack([film.quad(index) for index in range(film.frames)])  # (N, 4, 2)
    return Boxes(np.arange(1, film.frames + 1), np.round(corners, 2), config.width, config.height)


def decisive_part(config: ClipsConfig, film: Film) -> dict[str, Any]:
    """The frames of a clip that decide its class, and the box that holds the figure in all of them."""
    first, last = film.decisive()
    corners = np.concatenate([film.quad(index) for index in range(first, last + 1)])
    low, high = (np.clip(c, 0, (config.width, config.height)) for c in (corners.min(axis=0), corners.max(axis=0)))
    box = [*np.floor(low).astype(int).tolist(), *np.ceil(high).astype(int).tolist()]
    return {"first_frame": first + 1, "last_frame": last + 1, "box": box}


def write_annotations(config: ClipsConfig, plans: Sequence[ClipPlan], layout: DatasetLayout) -> None:
    """Write the table, the lists and the side files."""
    films = {plan.name: Film(config, plan) for plan in plans}
    for name, film in films.items():
        write_boxes(boxes_file(layout.root / "boxes", name), clip_boxes(config, film))
    decisive = {name: decisive_part(config, film) for name, film in films.items()}
    rows = ["video,start_frame,end_frame,label,group"]
    rows += [f"{plan.name},1,{plan.frames},{plan.label},{plan.group}" for plan in plans]
    classes = SCENES[config.task].CLASSES
    train, test = ([(plan.name, 1) for plan in part] for part in split_plans(plans, config.seed))
    for path, content in (
        (layout.annotations / "decisive.json", (json.dumps(decisive, indent=1) + "\n").encode()),
        (layout.annotations / CLASS_NAMES, ("\n".join(classes) + "\n").encode()),
        (layout.train_file, pickle.dumps(train, protocol=3)),
        (layout.test_file, pickle.dumps(test, protocol=3)),
        (layout.annotations / "table.csv", ("\n".join(rows) + "\n").encode()),
    ):
        write_atomic(path, content)


# ----------------------------------------------------------------------------------------------------------- whole set


def provenance(config: ClipsConfig) -> dict[str, Any]:
    """Everything that determines the pixels and labels: two sets of equal provenance are equal."""
    irrelevant = {"dataset", "workers", "sheet"}
    # sets that were drawn before these flags stay valid
    irrelevant |= {name for name, default in (("skaters", 1), ("cameras", "alike")) if getattr(config, name) == default}
    flags = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name not in irrelevant}
    return {"made_by": "data_preparation.synthetic", "drawing": DRAWING, "flags": flags}


def generate(config: ClipsConfig) -> list[ClipPlan]:
    """Write the whole set to `config.dataset` (or the default data set) and return its plan.

    Raises:
        UserError: no folder is given, or it holds another data set.
    """
    root = config.dataset or default_dataset()
    if root is None:
        raise UserError("no folder for the synthetic set: give --dataset DIR or set DEEPSPORTS_DATASET")
    layout = DatasetLayout(root)
    plans = make_plan(config)
    claim(layout, provenance(config))
    write_annotations(config, plans, layout)
    missing = {path: plan for plan in plans if not (path := layout.videos / f"{plan.name}.mp4").exists()}
    write_missing(partial(write_clip, config), missing, config.workers, sum(plan.frames for plan in missing.values()))
    return plans


# ------------------------------------------------------------------------------------------------------ contact sheet

SHEET_FRAMES = 8
SHEET_CLIPS = 6


def contact_sheet(config: ClipsConfig, height: int = 120) -> Image.Image:
    """Draw a few clips of each class in turn: eight evenly spaced frames each, beside their class. Frames that decide the
    class are framed in red, and the box of the figure is drawn in yellow."""
    gap, column = 4, 110
    width = 2 * round(height * config.width / config.height / 2)
    plans = make_plan(config)
    by_class = {name: [plan for plan in plans if plan.label == name] for name in SCENES[config.task].CLASSES}
    rows = [own[i] for i in range(SHEET_CLIPS) for own in by_class.values() if i < len(own)][:SHEET_CLIPS]
    size = (column + SHEET_FRAMES * (width + gap) + gap, len(rows) * (height + gap) + gap)
    sheet = Image.new("RGB", size, (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    sized = replace(config, width=width, height=height)
    for row, plan in enumerate(rows):
        film, y = Film(sized, plan), row * (height + gap) + gap
        draw.text(
            (gap + 2, y + height / 2 - 10), plan.label, fill=(20, 20, 30), font=ImageFont.load_default(19), anchor="lm"
        )
        draw.text(
            (gap + 2, y + height / 2 + 14), plan.group, fill=(70, 70, 80), font=ImageFont.load_default(14), anchor="lm"
        )
        first, last = film.decisive()
        for i in range(SHEET_FRAMES):
            index = round(i * (plan.frames - 1) / (SHEET_FRAMES - 1))
            x = column + i * (width + gap) + gap
            frame = film.frame(index)
            ImageDraw.Draw(frame).polygon(
                [tuple(corner) for corner in film.quad(index).tolist()], outline=(250, 220, 40)
            )
            sheet.paste(frame, (x, y))
            if first <= index <= last:
                draw.rectangle((x - 2, y - 2, x + width + 1, y + height + 1), outline=(220, 30, 40), width=2)
    return sheet


def main(argv: Sequence[str]) -> None:
    config = parse(ClipsConfig, argv, "python -m data_preparation.synthetic")
    if config.sheet is not None:
        sheet = contact_sheet(config)
        config.sheet.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(config.sheet) as temporary:
            sheet.save(temporary, format="PNG")
        print(f"contact sheet: {config.sheet}")
        return
    plans = generate(config)
    classes = Counter(plan.label for plan in plans)
    print(
        f"{len(plans)} clips ({', '.join(f'{n} {name}' for name, n in sorted(classes.items()))}) of "
        f"{config.performers} performers, {sum(plan.frames for plan in plans)} frames: {config.dataset or default_dataset()}"
    )
