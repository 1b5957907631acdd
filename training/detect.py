"""Write the boxes of one of torchvision's detectors, for the rules of `training.combine --postprocess NAME --boxes FILE`.

    python -m training.detect --weights FILE --root_dir DIR/whole_videos_frames --output detections.csv

The weights are a local file: torchvision's own (COCO), or a state dict of your training of one of its detectors. Nothing is
downloaded. data_preparation/detections.py describes the file that is written; boxes are in pixels of the source video. Frames
are not drawn at random, so the same command writes the same file.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from tqdm import tqdm

from data_preparation.actions import chosen_videos, is_chosen, video_order
from data_preparation.archive import FrameReader, FrameReaders
from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError, read_all
from data_preparation.common.files import atomic_file, reporting_write_errors
from data_preparation.detections import COLUMNS, Detection
from data_preparation.layout import archived_videos
from training import _torchvision as _torchvision
from training.backbones._weights import load_strict, read_state_dict
from training.runtime import collectives
from training.runtime.ranks import Ranks

# isort: split
import torchvision  # after training._torchvision
from torchvision.models import WeightsEnum, detection, get_model_builder, get_model_weights, list_models


@dataclass(frozen=True)
class DetectConfig:
    """Write the boxes that a detector of torchvision finds in prepared frames."""

    weights: Path = flag(None, "Weight file of the detector.")
    detector: str = flag("fasterrcnn_resnet50_fpn", "Architecture.", choices=tuple(list_models(module=detection)))
    classes: tuple[str, ...] = flag(
        (), "Names of all classes in the order of training, with the background; none: COCO's.", allowed="names"
    )
    root_dir: Path = flag(Path("."), "Folder of the prepared frames (whole_videos_frames).", short="-root")
    videos: tuple[str, ...] = flag(
        ("all",), "Videos to read: all archives, or names or folders of videos.", short="-vid", allowed="all, or names"
    )
    output: Path = flag(Path("detections.csv"), "CSV file to write.", short="-out")
    least_score: float = flag(0.3, "Boxes with a lower score are left out.", minimum=0, maximum=1)
    every: int = flag(1, "Read every n-th stored frame.", minimum=1)
    batch_size: int = flag(8, "Frames per batch.", short="-bs", minimum=1)
    gpu: bool = flag(True, "Use the GPU if there is one.", short="-gpu")

    def __post_init__(self) -> None:
        if self.weights is None:
            raise UserError("--weights is missing: give the weight file of the detector")


def check_operators(device: torch.device) -> None:
    """
    Raises:
        UserError: torchvision's compiled operators, which all detectors call, do not run on this device.
    """
    try:
        torchvision.ops.boxes.nms(torch.zeros(1, 4, device=device), torch.zeros(1, device=device), 0.5)
    except RuntimeError:  # also NotImplementedError, of a torchvision without the operators of this device
        raise UserError(
            f"torchvision {torchvision.__version__} has no operator nms for torch {torch.__version__} on {device.type}: install the two versions that belong together from the same index (CPU or CUDA), or write the boxes with another detector"
        ) from None


def class_count(detector: str, shapes: dict[str, torch.Size]) -> int:
    """The number of classes (background included) of a network with tensors of these shapes; 2 if no tensor says it."""

    def sizes(classes: int) -> dict[str, int]:
        with torch.device("meta"):
            network = get_model_builder(detector)(weights=None, weights_backbone=None, num_classes=classes)
        return {name: tensor.numel() for name, tensor in network.state_dict().items()}

    of_two, of_three = sizes(2), sizes(3)
    for name, size in of_two.items():
        if (step := of_three[name] - size) and name in shapes:
            return max(2 + (shapes[name].numel() - size) // step, 1)
    return 2


def load_detector(config: DetectConfig) -> tuple[torch.nn.Module, Sequence[str]]:
    """The network with the weights of the file, and the names of its classes.

    Raises:
        UserError: the file cannot be read or does not fit the network, or --classes is missing or does not fit.
    """
    state = read_state_dict(config.weights)
    count = class_count(config.detector, {name: tensor.shape for name, tensor in state.items()})
    build = partial(get_model_builder(config.detector), weights_backbone=None)
    network = build(weights=None, num_classes=count)
    # torchvision's own files have frozen batch norm, which does not count batches
    uncounted = {name for name in network.state_dict() if name.endswith(".num_batches_tracked")}
    load_strict(network, state, uncounted, flag=f"--weights {config.weights} (--detector {config.detector})")
    published = get_model_weights(config.detector).DEFAULT
    names = config.classes or published.meta["categories"]
    if len(names) != count:
        raise UserError(
            f"{config.weights} has {count} classes and {'--classes' if config.classes else 'COCO'} has {len(names)}: name all with --classes, the background first if the detector was trained with one"
        )
    if count == len(published.meta["categories"]):  # batch norm of these has another epsilon, which no file holds
        with patch.object(WeightsEnum, "get_state_dict", lambda *_, **__: network.state_dict()):  # not downloaded
            network = build(weights=published)
    return network.eval(), names


def videos_of(config: DetectConfig) -> list[str]:
    """The chosen videos that have an archive, and chosen names of others, which may have loose frames.

    Raises:
        UserError: there are none, or --videos has a name that cannot be that of a video.
    """
    chosen = chosen_videos(config.videos)
    found = [video for video in archived_videos(config.root_dir) if is_chosen(video, chosen)]
    found += [name for name in chosen or () if not any(is_chosen(video, {name}) for video in found)]
    if not found:
        raise UserError(f"{config.root_dir} has no archives of frames: give their folder, or --videos for loose frames")
    return sorted(found, key=video_order)


def scale_to_source(reader: FrameReader, height: int, width: int) -> tuple[float, float]:
    """Factors from x and y in a stored frame to x and y in the source video; 1 for loose frames, which do not state it."""
    source = reader.provenance.get("source", {"width": width, "height": height})
    wide, high = source["width"], source["height"]
    if (wide > high) != (width > height):  # the video is shown turned by 90 degrees
        wide, high = high, wide
    return wide / width, high / height


@torch.inference_mode()
def detect(
    network: torch.nn.Module, names: Sequence[str], reader: FrameReader, numbers: Sequence[int], least_score: float
) -> Iterator[Detection]:
    """The boxes in some frames of a video, in one batch.

    Raises:
        UserError: a frame is missing or damaged.
    """
    device = next(network.parameters()).device
    images = [torch.from_numpy(reader.image(number)).to(device).permute(2, 0, 1) / 255 for number in numbers]  # CHW
    for number, image, found in zip(numbers, images, network(images), strict=True):
        x_scale, y_scale = scale_to_source(reader, *image.shape[1:])
        scale = torch.tensor([x_scale, y_scale] * 2)
        for box, label, score in zip(
            found["boxes"].cpu(), found["labels"].tolist(), found["scores"].tolist(), strict=True
        ):
            x1, y1, x2, y2 = (round(value, 2) for value in (box * scale).tolist())
            if score >= least_score and x1 < x2 and y1 < y2:
                yield Detection(number, names[label], score, (x1, y1, x2, y2))


def write_detections(config: DetectConfig) -> str:
    """Write the boxes of all chosen videos; return what was written in one line.

    Raises:
        UserError: an input is missing, damaged or does not fit, or the file cannot be written; no part of it is left.
    """
    device = collectives.choose_device(config.gpu, Ranks())
    check_operators(device)
    readers = FrameReaders(config.root_dir)
    videos = videos_of(config)

    def chosen_frames(video: str) -> list[int]:
        return readers[video].numbers[:: config.every].tolist()

    numbers = read_all({video: partial(chosen_frames, video) for video in videos})
    network, names = load_detector(config)
    network.to(device)
    count, frames = 0, sum(map(len, numbers.values()))
    with (
        reporting_write_errors(config.output),
        atomic_file(config.output) as temporary,
        open(temporary, "w", newline="") as file,
        tqdm(total=frames, desc="detect", unit="frame", disable=not sys.stderr.isatty()) as bar,
    ):
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for video in videos:
            before = count
            for start in range(0, len(numbers[video]), config.batch_size):
                batch = numbers[video][start : start + config.batch_size]
                for box in detect(network, names, readers[video], batch, config.least_score):
                    rows.writerow([video, box.frame, box.name, f"{box.score:.6f}", *box.corners])
                    count += 1
                bar.update(len(batch))
            if count == before:
                rows.writerow([video, *[""] * (len(COLUMNS) - 1)])  # read, and nothing was seen
    return f"{count} boxes in {frames} frames of {len(videos)} videos: {config.output}"


def main(argv: Sequence[str]) -> int:
    print(write_detections(parse(DetectConfig, argv, prog="python -m training.detect")))
    return 0


if __name__ == "__main__":
    run(main)
