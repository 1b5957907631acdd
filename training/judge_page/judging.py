"""What the worker process does: read a video, and make the judge that scores. Imports no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from data_preparation.common.files import write_atomic
from data_preparation.decoding import decode_ranges, to_jpeg
from data_preparation.frame_numbers import scan_video
from training.judge_page.records import Judge, VideoFacts

_THUMBNAILS, _THUMBNAIL_HEIGHT, _THUMBNAIL_QUALITY = 24, 240, 80


def read_video(path: Path, folder: Path) -> VideoFacts:
    """Open a video and write thumbnails, FRAME.jpg, into `folder`.

    Raises:
        UserError: it cannot be read.
    """
    scan = scan_video(path)
    numbers = np.unique(np.linspace(1, scan.frame_count, _THUMBNAILS).round().astype(int)).tolist()
    width, height = scan.width, scan.height
    for number, frame in decode_ranges(scan, [(n, n) for n in numbers]):
        if frame.rotation % 180:
            width, height = scan.height, scan.width
        write_atomic(folder / f"{number}.jpg", to_jpeg(frame, _THUMBNAIL_HEIGHT, _THUMBNAIL_QUALITY))
    return VideoFacts(scan.frame_count, float(scan.rate), width, height, tuple(numbers))


def load_judge(run: Path, *, gpu: bool, with_explanation: bool) -> Judge:
    """The judge of a run folder.

    Raises:
        UserError: as Scorer.from_run, or the method needs more than a person can answer.
    """
    import torch

    from training.judge_page.run_judge import RunJudge
    from training.runtime.ranks import allocated_cpus
    from training.runtime.run_folder import RunFolder
    from training.scorer import Scorer

    if cpus := allocated_cpus():
        torch.set_num_threads(cpus)
    return RunJudge(Scorer.from_run(run, gpu=gpu), RunFolder(run).title, with_explanation)
