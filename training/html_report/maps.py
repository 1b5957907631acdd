"""Maps of a page's examples: what the trained network looked at (training.explain). Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data_preparation.actions import Action
from data_preparation.archive import FrameReaders
from data_preparation.common.errors import UserError
from training.data.sampling import END_SHIFT
from training.explain import explain
from training.explain.sheet import chosen_frames, effect_text, overlay
from training.scorer import Clip, Scorer


def maps_of(run: Path, actions: Sequence[Action], frames_dir: Path) -> list[tuple[list[np.ndarray], str]]:
    """For each action frames (H, W, 3) uint8 with a map over each, and a sentence about the moment that mattered most.

    Raises:
        UserError: the run has no best checkpoint, the frames are missing, or the network offers no map.
    """
    scorer, readers = Scorer.from_run(run), FrameReaders(frames_dir)
    found = []
    for action in tqdm(actions, desc="maps", unit="clip"):
        reader = readers[action.video]
        numbers = reader.numbers
        # some ways to choose frames use frames after the end
        numbers = numbers[(numbers >= action.start_frame) & (numbers <= action.end_frame + END_SHIFT)]
        if not len(numbers):
            raise UserError(
                f"{frames_dir} has no frames of {action.name} (frames {action.start_frame} to {action.end_frame}): extract them again, or leave out --maps"
            )
        frames_THWC = np.stack([reader.image(int(number), scorer.least) for number in numbers])
        (explanation,) = explain(scorer, [Clip(frames_THWC, action, action.name, numbers=numbers)])
        reason = explanation.reasons[0]
        pictures = [overlay(explanation.frames_THWC[i], reason.map_THW[i]) for i in chosen_frames(explanation)]
        text = f"{reason.quantity}: {effect_text(reason)}".replace("\n", " ")
        found.append((pictures, text))
    return found
