"""What all drawn data sets share: colours, limbs, random streams, the encoder, and the folder that holds a set."""

from __future__ import annotations

import json
import multiprocessing
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

import av
import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from data_preparation.common.errors import UserError
from data_preparation.common.files import atomic_file, write_atomic
from data_preparation.common.workers import WORKER_KILLED, check_workers
from data_preparation.layout import DatasetLayout
from data_preparation.similar_files import names_in

TASKS = ("dive", "fall", "actions")  # what --task draws
SUPERSAMPLE = 2  # frames are drawn at this multiple of their size, then averaged down
GOP_SIZE = 250  # frames between forced key frames, as in broadcasts

Colour = tuple[int, int, int]
Point = tuple[float, float]
ToPixels = Callable[[Point], Point]  # maps metres to pixels of the drawing
Plan = TypeVar("Plan")

SKINS: tuple[Colour, ...] = ((246, 200, 164), (226, 172, 130), (198, 140, 98))


def random_stream(seed: int, purpose: int, video: int | str = 0, number: int = 0) -> np.random.Generator:
    """The random generator of one purpose for one action (or one video, or the whole set)."""
    return np.random.default_rng((seed, purpose, int(video), number))


def ease(value: float, start: float, end: float) -> float:
    """Smoothstep: 0 before `start`, 1 after `end`."""
    x = min(max((value - start) / (end - start), 0.0), 1.0)
    return x * x * (3 - 2 * x)


def tint(colour: Colour, factor: float) -> Colour:
    """Make a colour brighter (`factor` above 1) or darker."""
    red, green, blue = (min(max(round(c * factor), 0), 255) for c in colour)
    return red, green, blue


def blend(colour: Colour, other: Colour, fraction: float) -> Colour:
    """Mix `fraction` of another colour into a colour."""
    red, green, blue = (round(a + (b - a) * fraction) for a, b in zip(colour, other, strict=True))
    return red, green, blue


def draw_limb(draw: ImageDraw.ImageDraw, points: Sequence[Point], width: float, colour: Colour) -> None:
    """Draw a polyline with round ends; `width` in pixels."""
    draw.line(points, fill=colour, width=max(round(width), 1), joint="curve")
    r = width / 2
    for x, y in (points[0], points[-1]):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)


def odd_size_faults(width: int, height: int) -> list[str]:
    """A sentence for each of --width and --height that H.264 cannot encode."""
    return [
        f"--{name} {value} is odd: give an even number, which H.264 (yuv420p) requires"
        for name, value in (("width", width), ("height", height))
        if value % 2
    ]


# ------------------------------------------------------------------------------------------------------------- folder


def claim(layout: DatasetLayout, record: dict[str, Any]) -> None:
    """Mark the folder as holding the set of this provenance.

    Raises:
        UserError: the folder holds another data set.
    """
    path = layout.synthetic_file
    if path.exists():
        try:
            found = json.loads(path.read_text())
        except ValueError:
            found = None
        if found != record:
            old, new = ((r or {}).get("flags", {}) for r in (found, record))
            names = ", ".join(f"--{name}" for name in new if old.get(name) != new[name]) or "--like or the drawing code"
            raise UserError(
                f"{layout.root} holds a synthetic set made with other flags ({names}): choose another --dataset or delete that folder"
            )
        return
    if names_in(layout.videos) or layout.annotation_file.exists():
        raise UserError(
            f"{layout.root} holds a data set that is not synthetic: choose another --dataset for the synthetic one"
        )
    for folder in (layout.videos, layout.annotations):
        folder.mkdir(parents=True, exist_ok=True)
    write_atomic(path, (json.dumps(record, indent=1) + "\n").encode())


# ------------------------------------------------------------------------------------------------------------- videos


def encode_video(
    images: Iterable[Image.Image], path: Path, size: tuple[int, int], fps: int, progress: Callable[[], None]
) -> None:
    """Encode RGB images of `size` (width, height) as H.264 and write the file atomically. Calls `progress()` for each frame."""
    with atomic_file(path) as temporary, av.open(str(temporary), "w", format="mp4") as container:
        # rc-lookahead 0: with lookahead, x264 reads uninitialised memory, so the bytes would differ between processes
        options = {"preset": "veryfast", "crf": "18", "g": str(GOP_SIZE), "bf": "3", "rc-lookahead": "0"}
        video = container.add_stream("libx264", rate=fps, options=options)
        video.width, video.height = size
        video.pix_fmt = "yuv420p"
        video.codec_context.thread_count = 1  # one video per process; also makes the bytes independent of the machine
        for index, image in enumerate(images):
            frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, fps)
            container.mux(video.encode(frame))
            progress()
        container.mux(video.encode(None))


_frames_done: Any = None  # multiprocessing.Value: number of frames that all workers have drawn


def _init_worker(frames_done: Any) -> None:
    global _frames_done
    _frames_done = frames_done


def _count_frame() -> None:
    with _frames_done.get_lock():
        _frames_done.value += 1


def _write_in_worker(write: Callable[[Any, Path, Callable[[], None]], None], plan: Any, path: Path) -> None:
    write(plan, path, _count_frame)


def _progress_bar(frames: int) -> tqdm:
    return tqdm(total=frames, desc="drawing", unit="frame", unit_scale=True, disable=not sys.stderr.isatty())


def write_missing(
    write: Callable[[Plan, Path, Callable[[], None]], None], plans: Mapping[Path, Plan], workers: int, frames: int
) -> None:
    """Call `write(plan, path, progress)` for each file that is missing, one per worker, in the given order.

    `write` must be importable by workers. `frames` is their total number.
    """
    if not plans:
        return
    check_workers(min(workers, len(plans)))
    context = multiprocessing.get_context("spawn")  # threads of FFmpeg and tqdm do not survive a fork
    frames_done = context.Value("q", 0)
    with (
        ProcessPoolExecutor(min(workers, len(plans)), context, _init_worker, (frames_done,)) as pool,
        _progress_bar(frames) as bar,
    ):
        pending: set[Future] = {pool.submit(_write_in_worker, write, plan, path) for path, plan in plans.items()}
        try:
            while pending:
                done, pending = wait(pending, timeout=0.3, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
                bar.update(frames_done.value - bar.n)
        except BrokenProcessPool:
            raise UserError(f"{WORKER_KILLED} and run the command again") from None
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
