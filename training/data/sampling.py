"""Which frames a clip is made of, and in which order dives come (pure functions)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from training.runtime.seeding import generator

END_SHIFT = 3  # frames: how far the end-aligned window moves in training (C3D-AVG)


def needed_frames(start: int, end: int, count: int, method: str) -> tuple[int, int]:
    """First and last frame that must exist for the clips of a dive (frames after `end` are used where they exist)."""
    return (max(end - count + 1 - END_SHIFT, 1), end) if method == "end_aligned" else (start, end)


def clip_frames(
    start: int, end: int, count: int, method: str, rng: np.random.Generator | None, frames_after: int = END_SHIFT
) -> np.ndarray:
    """Numbers of the `count` frames of a clip, ascending, from the frames `start` to `end` (both inclusive).

    With n = end - start + 1 frames and bins of n / count frames (the methods of DeepSports):
        spaced_fixed        the first frame of each bin
        spaced_varied       each bin shifted by one common draw
        spaced_fixed_new    the same as spaced_varied (they are identical in distribution)
        spaced_varied_new   each bin shifted by a draw of its own
        random              a sorted sample without replacement
        end_aligned         the `count` frames that end at `end`, shifted by a draw of -3 to 3 (C3D-AVG) but not past
                            the `frames_after` frames that follow `end` on disk; begins before `start` in a short dive,
                            and repeats frame 1 where it would begin before the video
    `rng` is None for validation and test: then every method takes the middle of each bin (end_aligned: no shift),
    except spaced_fixed, which has no draw to leave out.

    Raises:
        ValueError: `random` with fewer frames than `count`.
    """
    n = end - start + 1
    if method == "end_aligned":
        shift = 0 if rng is None else min(int(rng.integers(-END_SHIFT, END_SHIFT + 1)), frames_after)
        return np.maximum(np.arange(end - count + 1, end + 1) + shift, 1)
    if method == "random" and rng is not None:
        if n < count:
            raise ValueError(f"the dive has {n} frames and --frame_method random wants {count} different ones")
        return start + np.sort(rng.choice(n, size=count, replace=False))
    bins = np.arange(count)
    if method == "spaced_fixed":
        offsets = np.zeros(count)
    elif rng is None:
        offsets = np.full(count, 0.5)
    elif method in ("spaced_varied", "spaced_fixed_new"):
        offsets = np.full(count, rng.random())
    else:
        offsets = rng.random(count)
    return start + np.floor((bins + offsets) * (n / count)).astype(int)


def epoch_order(count: int, seed: int, epoch: int, repeats: Sequence[int] | None = None) -> np.ndarray:
    """The order in which `count` training actions are seen in an epoch, whatever the number of processes; `repeats` says
    how often each of them comes (none: once)."""
    order = generator(seed, "order", epoch)
    return order.permutation(count) if repeats is None else order.permutation(np.repeat(np.arange(count), repeats))


def balancing_repeats(labels: Sequence[int]) -> list[int]:
    """How often each sample comes so that all classes come about equally often, the largest class once each."""
    counts = {label: labels.count(label) for label in set(labels)}
    most = max(counts.values())
    return [round(most / counts[label]) for label in labels]


def rank_rows(batch: Sequence, rank: int, world_size: int) -> Sequence:
    """The rows of a global batch that one rank works on; the ranks' rows in rank order are the batch."""
    share = len(batch) // world_size
    return batch[rank * share : (rank + 1) * share]
