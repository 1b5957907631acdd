"""Strong augmentation in a worker and on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from data_preparation.actions import Action
from data_preparation.common.command_line import flag
from training.benchmark._result import Common, Result, Row, Timing, time_call
from training.data.augment import as_tensor, augment_clips, change_colours, randaugment
from training.data.plan import ClipSpec
from training.data.transforms import crop_flip_rotate, squash_view
from training.runtime.seeding import generator


@dataclass(frozen=True)
class Config(Common):
    """--augment randaugment of one clip after the other, as in a worker, and of a whole batch on the device."""

    clips: int = flag(8, "Clips of the batch.", minimum=1)
    frame_num: int = flag(8, "Frames per clip.", minimum=1)
    spatial_size: int = flag(224, "Height and width of the frames in pixels.", minimum=1)


def measure(config: Config) -> Result:
    """The time of a batch of --augment_on loader in one worker, and of --augment_on device."""
    device = config.device
    shape = (config.clips, config.frame_num, 3, config.spatial_size, config.spatial_size)
    loaded = torch.randint(0, 256, shape, dtype=torch.uint8)
    action = Action("benchmark", 1, 1, config.frame_num)
    planned = ClipSpec(action, tuple(range(1, config.frame_num + 1)), squash_view(config.spatial_size))
    drawn = [
        [randaugment(planned, generator("clip", number, index)) for index in range(config.clips)]
        for number in range(config.rounds)
    ]

    def in_worker(specs: Sequence[ClipSpec]) -> None:
        for spec, frames_TCHW in zip(specs, loaded, strict=True):
            assert spec.view is not None
            assert spec.look is not None
            change_colours(crop_flip_rotate(spec.view, frames_TCHW), spec.look)

    def on_device(specs: Sequence[ClipSpec]) -> None:
        augment_clips(loaded.to(device), [as_tensor(spec).tolist() for spec in specs])

    in_worker(drawn[0])  # the first call imports torchvision and allocates memory
    on_device(drawn[0])
    threads = torch.get_num_threads()
    timings = {"ours": Timing(), "reference": Timing()}
    for specs in drawn:
        for name, way, own_threads in (("reference", in_worker, 1), ("ours", on_device, threads)):
            torch.set_num_threads(own_threads)
            wall, cpu = time_call(partial(way, specs), device)
            timings[name].wall.append(wall)
            timings[name].cpu.append(cpu)
    text = f"{config.clips} clips of {config.frame_num} x {config.spatial_size} x {config.spatial_size}"
    legend = [
        "This project: --augment_on device, one batch; the training waits. Reference: --augment_on loader, one clip after the",
        "other in one thread; workers run beside the training.",
    ]
    return Result([Row.of(text, timings)], legend)
