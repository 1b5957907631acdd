"""Write what a detector might find in drawn clips of everyday actions, to try rules that need boxes (data_preparation/detections.py).

    python -m data_preparation.synthetic.detector --dataset DIR --output boxes.csv

It looks at the true box of each frame by itself: a figure whose feet are off the floor is "airborne", one that leans is "bent",
others are "upright". It misses boxes, and takes some for another class. All random numbers are a function of (seed, video).
"""

from __future__ import annotations

import csv
import io
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data_preparation.boxes import Boxes, read_boxes
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from data_preparation.common.files import reporting_write_errors, write_atomic
from data_preparation.detections import COLUMNS
from data_preparation.layout import dataset_layout
from data_preparation.synthetic.canvas import random_stream

CLASSES = ("upright", "bent", "airborne")
FEET = 0.85  # of the height of the picture: lower edges above it are off the floor
LEANING = 22.0  # degrees
DETECTOR = 107  # purpose of the random stream


@dataclass(frozen=True)
class DetectorConfig:
    """Write what a detector might find in drawn clips."""

    dataset: Path | None = flag(None, "Data set folder; none uses DEEPSPORTS_DATASET of job_files/environment.sh.")
    output: Path | None = flag(None, "CSV file to write.")
    missed: float = flag(0.3, "Share of the boxes that are not found.", minimum=0, maximum=1)
    confused: float = flag(0.1, "Share of the found boxes with a wrong class.", minimum=0, maximum=1)
    seed: int = flag(0, "Random seed.", minimum=0)

    def __post_init__(self) -> None:
        if self.output is None:
            raise UserError("--output is missing: give the CSV file to write, such as boxes.csv")


def shapes(boxes: Boxes) -> np.ndarray:
    """The class (N,) int of each box, by its place and lean alone."""
    up = boxes.corners[:, 0] - boxes.corners[:, 3]  # (N, 2), along the trunk
    leaning = np.abs(np.degrees(np.arctan2(up[:, 0], -up[:, 1]))) > LEANING
    airborne = boxes.corners[..., 1].max(axis=1) < FEET * boxes.height
    return np.where(airborne, 2, np.where(leaning, 1, 0))


def detect(video: str, boxes: Boxes, config: DetectorConfig) -> list[list[str]]:
    """The rows of one video."""
    rng = random_stream(config.seed, DETECTOR, zlib.crc32(video.encode()))
    count = len(boxes.frames)
    found, wrong = rng.random(count) >= config.missed, rng.random(count) < config.confused
    classes = (shapes(boxes) + np.where(wrong, rng.integers(1, len(CLASSES), count), 0)) % len(CLASSES)
    scores = np.where(wrong, rng.uniform(0.3, 0.8, count), rng.uniform(0.5, 1, count))
    low, high = boxes.corners.min(axis=1), boxes.corners.max(axis=1)  # (N, 2)
    rows = [
        [
            video,
            str(boxes.frames[i]),
            CLASSES[classes[i]],
            f"{scores[i]:.3f}",
            *(f"{x:.1f}" for x in (*low[i], *high[i])),
        ]
        for i in np.flatnonzero(found)
    ]
    return rows or [[video, *[""] * (len(COLUMNS) - 1)]]


def main(argv: Sequence[str]) -> None:
    config = parse(DetectorConfig, argv, prog="python -m data_preparation.synthetic.detector", description=__doc__)
    assert config.output is not None
    folder = dataset_layout(config.dataset).root / "boxes"
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise UserError(
            f"{folder} holds no boxes: draw the clips first (python -m data_preparation.synthetic --task actions)"
        )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for file in files:
        writer.writerows(detect(file.stem, read_boxes(file), config))
    with reporting_write_errors(config.output):
        write_atomic(config.output, text.getvalue().encode())
    print(f"{config.output}: boxes of {len(files)} videos")


if __name__ == "__main__":
    run(main)
