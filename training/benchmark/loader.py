"""Loading of clips on the CPU, and how long a training waits for it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from itertools import count, cycle
from pathlib import Path

import simplejpeg
import torch
from torch.utils.data import DataLoader

from data_preparation import datasets
from data_preparation.archive import open_frames
from data_preparation.common.command_line import flag
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout
from training.benchmark._cache import cached_rows
from training.benchmark._data import config_for, drawn_dives, repeated, write_loose_frames
from training.benchmark._headspace import headspace
from training.benchmark._reference_loader import ClipDataset, load_clip
from training.benchmark._result import Common, Result, Row, Timing, Way, alternate, time_call
from training.config import as_in_run
from training.data.buffers import SharedBuffers
from training.data.dataset import ActionDataset, ClipReader
from training.data.facts import NO_FACTS
from training.data.loader import keep_workers, training_batches
from training.data.plan import ClipSpec
from training.methods import build_method
from training.runtime.ranks import Ranks

VIDEO = "01"


@dataclass(frozen=True)
class Config(Common):
    """The time to load a clip, and with --headspace how long a training waits for its loader."""

    height: int = flag(720, "Height of the drawn video in pixels; it is 16 by 9.", minimum=144)
    dives: int = flag(2, "Dives of the drawn video, about 110 frames each.", minimum=2)
    workers: int = flag(2, "DataLoader workers, for the first batch of an epoch.", minimum=1)
    headspace: bool = flag(
        False, "Measure --run instead: its steps with its loader against steps on one batch again and again."
    )
    run: Path | None = flag(None, "The run folder for --headspace; nothing is written to it.")
    steps: int = flag(20, "Steps of each round of --headspace.", minimum=1)
    root_dir: Path | None = as_in_run("root_dir")
    annotation_path: Path | None = as_in_run("annotation_path")
    train_path: Path | None = as_in_run("train_path")
    test_path: Path | None = as_in_run("test_path")

    def __post_init__(self) -> None:
        if self.headspace and self.run is None:
            raise UserError("--headspace needs the run to measure: give --run, such as runs/default")
        if self.run and not self.headspace:
            raise UserError("--run is for --headspace: give --headspace True, or leave --run out")


LEGEND = [
    "One clip on one core, written to shared memory. Reference: loose JPEGs of full size, PIL, float resize, normalise. Ceiling: bare libjpeg-turbo",
    "(simplejpeg) on the same frames in memory; at 112 pixels it scales while it decodes.",
    "The first batch of an epoch: with its workers' start, if they start then. Reference: a plain DataLoader with as many",
    "workers. Ceiling: bare decoding of a batch on one core, as one worker loads a batch.",
]


def measure(config: Config) -> Result:
    """Load clips of drawn dives in every way."""
    if config.run is not None:
        return headspace(config)
    width = round(config.height * 16 / 9 / 2) * 2
    size = ["--width", width, "--height", config.height]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in a worker
    try:
        with drawn_dives(
            "--videos", 1, "--dives", config.dives, "--min_frames", 104, "--max_frames", 112, *size, grain=True
        ) as layout:
            loose = layout.root / "loose"
            write_loose_frames(layout, VIDEO, loose)
            rows = [
                *clip_rows("48 frames of 256 x 455, crop 224", layout, loose, config, frame_num=48, spatial_size=224),
                *clip_rows("103 frames, crop 112 (C3D)", layout, loose, config, frame_num=103, spatial_size=112),
                first_batch_row(layout, loose, config),
            ]
            reader = open_frames(layout.frames, VIDEO)
            kilobytes = sum(len(reader.read(int(n))) for n in reader.numbers) / len(reader.numbers) / 1e3
    finally:
        torch.set_num_threads(threads)
    return Result(
        rows,
        [
            *LEGEND,
            f"Drawn frames with grain: {kilobytes:.0f} kB a frame, as in broadcasts (30 to 45 kB).",
        ],
    )


def data_set(layout: DatasetLayout, samples: int, **flags: object) -> ActionDataset:
    """A training set of `samples` samples: the dives of a data set, repeated."""
    config = config_for(layout, data_aug=True, **flags)
    actions = datasets.load(config.dataset_kind, config.annotation_files).actions
    method = build_method(config, feature_dim=8, data=NO_FACTS)  # here it only plans samples
    return ActionDataset(repeated(list(actions.values()), samples), config, method, augment=True)


def decoded_bytes(layout: DatasetLayout, clips: Sequence[ClipSpec]) -> list[list[bytes]]:
    """The JPEGs of each clip, read into memory."""
    reader = open_frames(layout.frames, VIDEO)
    return [[reader.read(number) for number in clip.frames] for clip in clips]


def bare_decoding(jpegs: Sequence[bytes], clip: ClipSpec) -> None:
    """libjpeg-turbo alone; it scales down by eighths as far as the clip's view allows."""
    assert clip.view is not None
    height, width = clip.view.resize
    for jpeg in jpegs:
        simplejpeg.decode_jpeg(jpeg, colorspace="RGB", min_height=height, min_width=width)


def clip_rows(name: str, layout: DatasetLayout, loose: Path, config: Config, **flags: int | str) -> list[Row]:
    """One clip on one core: the loader, the reference way, bare decoding, a memory copy; torchcodec if it is installed."""
    dataset = data_set(layout, config.dives, **flags)
    planned = [dataset.plan(0, index) for index in range(len(dataset))]
    clips = [sample.sample.clips["clip"] for sample in planned]
    jpegs = decoded_bytes(layout, clips)
    decoded = dataset.reader[planned[0]].clips["clip"]

    def each(load: Callable[[int], object]) -> Callable[[], object]:
        """One clip after the other, a clip per call."""
        indices = cycle(range(len(clips)))
        return lambda: load(next(indices))

    scaled = data_set(layout, config.dives, **flags, frame_decode="scaled")

    finished, numbers, prefetch = torch.zeros(1, dtype=torch.int64), count(), dataset.config.prefetch
    buffers = SharedBuffers(prefetch, finished)

    def read(reader: ClipReader, index: int) -> object:
        """As a worker does, into shared memory, while the training has not copied the batches before."""
        number = next(numbers)
        finished.fill_(max(number - prefetch + 1, 0))
        with buffers.batch(number):
            return reader.__getitems__([planned[index]])

    timings = alternate(
        {
            "ours": each(partial(read, dataset.reader)),
            "scaled": each(partial(read, scaled.reader)),
            "reference": each(lambda index: load_clip(loose, clips[index])),
            "ceiling": each(lambda index: bare_decoding(jpegs[index], clips[index])),
            "copy": decoded.clone,
        },
        max(config.rounds, len(clips)),
        torch.device("cpu"),
    )
    rows = [Row.of(name, {part: timings[part] for part in ("ours", "reference", "ceiling")}, "CPU")]
    of_scaled = {"ours": timings["scaled"], "reference": timings["reference"], "ceiling": timings["ceiling"]}
    rows.append(Row.of("- with --frame_decode scaled", of_scaled, "CPU"))
    copied = {"ours": timings["copy"], "reference": timings["reference"]}
    rows.append(Row.of("- a memory copy of it, decoded", copied, "CPU", "the ceiling of a decoded cache"))
    rows += cached_rows(
        dataset.config, clips, each(lambda index: load_clip(loose, clips[index])), layout.root, config.rounds
    )
    name = "- reference: torchcodec on the video"
    if reason := why_no_torchcodec():
        return [*rows, Row(name, note=reason)]
    with_video = {
        "reference": torchcodec_way(layout, clips),
        "ours": each(lambda index: dataset.reader.__getitems__([planned[index]])),
    }
    timings = alternate(with_video, max(config.rounds, len(clips)), torch.device("cpu"))
    return [*rows, Row.of(name, timings, "CPU")]


def why_no_torchcodec() -> str:
    """Why torchcodec cannot be measured, or an empty text. Its wheels are made for one version of torch, with or without CUDA."""
    if find_spec("torchcodec") is None:
        return "not installed"
    try:
        import_module("torchcodec.decoders")
    except (ImportError, OSError, RuntimeError):
        return f"torchcodec {version('torchcodec')} does not load with torch {torch.__version__}"
    return ""


def torchcodec_way(layout: DatasetLayout, clips: Sequence[ClipSpec]) -> Callable[[], object]:
    """Decode the frames of a clip from the video with torchcodec, in one thread, then resize and crop them."""
    from torchcodec.decoders import VideoDecoder

    from training.data.transforms import crop_flip_rotate

    decoder = VideoDecoder(str(layout.video_file(VIDEO)), num_ffmpeg_threads=1)
    turn = cycle(clips)

    def load() -> torch.Tensor:
        clip = next(turn)
        assert clip.view is not None
        frames_TCHW = decoder.get_frames_at([number - 1 for number in clip.frames]).data
        resized = torch.nn.functional.interpolate(frames_TCHW, clip.view.resize, mode="bilinear", antialias=True)
        return crop_flip_rotate(clip.view, resized)

    return load


def first_batch_row(layout: DatasetLayout, loose: Path, config: Config) -> Row:
    """The time until the first batch of an epoch, with clips of 8 frames in batches of 4."""
    size, device = 4, torch.device("cpu")
    dataset = data_set(
        layout, size * config.workers * 2, frame_num=8, spatial_size=224, batch_size=size, workers=config.workers
    )
    clips = [dataset.plan(0, index).sample.clips["clip"] for index in range(len(dataset))]
    jpegs = decoded_bytes(layout, clips[:size])
    plain = DataLoader(ClipDataset(loose, clips), batch_size=size, num_workers=config.workers)
    timings = {name: Timing() for name in ("ours", "reference", "ceiling")}

    def decode_batch() -> None:
        for of_clip, clip in zip(jpegs, clips, strict=False):
            bare_decoding(of_clip, clip)

    with keep_workers():
        for epoch in range(config.rounds + 1):
            ours = training_batches(dataset, dataset.config, Ranks(), device, epoch, first_step=0)
            theirs: list[Iterator[torch.Tensor]] = []

            def start_theirs(started: list[Iterator[torch.Tensor]] = theirs) -> None:
                started.append(iter(plain))
                next(started[0])

            ways: dict[str, Way] = {"ours": partial(next, ours), "reference": start_theirs, "ceiling": decode_batch}
            for name, way in ways.items():
                wall, cpu = time_call(way, device)
                if epoch:  # the first epoch also starts the server of the workers
                    timings[name].wall.append(wall)
                    timings[name].cpu.append(cpu)
                rest: dict[str, Iterable[object]] = {"ours": ours, "reference": theirs and theirs[0]}
                for _ in rest.get(name, ()):
                    pass
    return Row.of(f"the first batch of an epoch (4 clips of 8, {config.workers} workers)", timings)
