"""The small data set that the benchmarks make: drawn dives, encoded, extracted, and written as loose JPEGs."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_preparation.common.errors import UserError
from data_preparation.decoding import decode_ranges, to_image, to_jpeg
from data_preparation.frame_numbers import scan_video
from data_preparation.layout import DatasetLayout, frame_name
from data_preparation.synthetic.canvas import encode_video
from training.config import TrainConfig


def run_module(*words: object, env: dict[str, str] | None = None) -> str:
    """Run `python -m` with these words and return its output.

    Raises:
        UserError: it failed.
    """
    done = subprocess.run([sys.executable, "-m", *map(str, words)], capture_output=True, text=True, env=env)
    if done.returncode:
        last = ((done.stderr or done.stdout).strip().splitlines() or ["no message"])[-1]
        raise UserError(f"python -m {words[0]} failed: {last}")
    return done.stdout + done.stderr


@contextmanager
def drawn_dives(*flags: object, grain: bool = False) -> Iterator[DatasetLayout]:
    """A temporary data set of drawn dives, made with flags of data_preparation.synthetic, and its frames as
    data_preparation.extract stores them. With `grain` the JPEGs are as large as those of broadcasts."""
    folder = Path(tempfile.mkdtemp(prefix="deepsports-benchmark-"))
    try:
        layout = DatasetLayout(folder / "dives")
        run_module("data_preparation.synthetic", "--dataset", layout.root, *flags)
        if grain:
            for video in sorted(layout.videos.iterdir()):
                add_grain(video)
        run_module("data_preparation.extract", "--dataset", layout.root)
        yield layout
    finally:
        shutil.rmtree(folder)


def add_grain(video: Path, deviation: float = 5.0) -> None:
    """Encode a video again with grain. Drawn pictures are smooth: their JPEGs are small, and decode faster than real ones."""
    scan = scan_video(video)
    rng = np.random.default_rng(0)
    rows, columns = (np.arange(size) * 256 // scan.height for size in (scan.height, scan.width))
    grains = [rng.normal(0, deviation, (rows[-1] + 1, columns[-1] + 1))[rows][:, columns, None] for _ in range(5)]
    pictures = (
        Image.fromarray(np.clip(to_image(frame, 0) + grains[number % 5].astype(np.int16), 0, 255).astype(np.uint8))
        for number, frame in decode_ranges(scan, [(1, scan.frame_count)])
    )
    grainy = video.with_name(f"grain{video.suffix}")
    encode_video(pictures, grainy, (scan.width, scan.height), 25, lambda: None)
    grainy.replace(video)


def write_loose_frames(layout: DatasetLayout, video: str, folder: Path) -> None:
    """Every frame of a video as a JPEG of full size, as `ffmpeg -i NN.mp4 %06d.jpg` writes them."""
    scan = scan_video(layout.video_file(video))
    folder.mkdir(parents=True)
    for number, frame in decode_ranges(scan, [(1, scan.frame_count)]):
        (folder / frame_name(number)).write_bytes(to_jpeg(frame, 0, 95))


def config_for(layout: DatasetLayout, **flags: Any) -> TrainConfig:
    """The flags of a training on a data set."""
    return TrainConfig(
        root_dir=layout.frames,
        annotation_path=layout.annotation_file,
        train_path=layout.train_file,
        test_path=layout.test_file,
        **flags,
    )


def repeated(items: Sequence[Any], count: int) -> list[Any]:
    """`count` items, from the start again when they are used up."""
    return [items[index % len(items)] for index in range(count)]
