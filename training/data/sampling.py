"""Choice of a clip's frames, and the order of actions in an epoch (pure functions)."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from training.runtime.seeding import generator

END_ALIGNED = ("end_aligned", "end_aligned_spaced")  # the methods that may use frames before `start` and after `end`
END_SHIFT = 3  # frames by which the end-aligned window is shifted at most in training (C3D-AVG)
END_WINDOW = 103  # frames of the window of end_aligned_spaced (MSCADC)
DENSE_FRAMES = 64  # frames that a clip of method "dense" spans (TSM)


def needed_frames(start: int, end: int, count: int, method: str) -> tuple[int, int]:
    """First and last frame that must exist for the clips of an action. Frames after `end` are used only if they exist."""
    if method not in END_ALIGNED:
        return start, end
    window = count if method == "end_aligned" else END_WINDOW
    return max(end - window + 1 - END_SHIFT, 1), end


def clip_frames(
    start: int,
    end: int,
    count: int,
    method: str,
    rng: np.random.Generator | None,
    frames_after: int = END_SHIFT,
    place: float = 0.5,
) -> np.ndarray:
    """The `count` frame numbers of a clip, ascending (except for `dense`), chosen from the frames `start` to `end` (both inclusive).

    With n = end - start + 1 frames and bins of n / count frames (the methods of DeepSports):
        spaced_fixed        the first frame of each bin
        spaced_varied       a frame at the same random offset in each bin
        spaced_fixed_new    as spaced_varied (identical in distribution)
        spaced_varied_new   a frame at a random offset of its own in each bin
        random              a sorted sample without replacement
        end_aligned         the `count` frames up to `end`, shifted at random by -3 to 3 frames (C3D-AVG), but not past the
                            `frames_after` frames that follow `end` on disk. In an action shorter than `count` it begins
                            before `start`; before the start of the video it repeats frame 1.
        end_aligned_spaced  `count` frames at equal distances in the 103 frames up to `end`, shifted in the same way (MSCADC: 16
                            frames, each 6.5 frames after the one before)
        segments            a frame at a random offset of its own in each of `count` segments of floor(n / count) frames; the
                            last n mod count frames are never used. With n < count the middle of each bin (TSM)
        dense               every (64 // count)-th frame from a random start, or from the first frame if n <= 64; after the last
                            frame it continues with the first (TSM on Kinetics)
    For validation and test `rng` is None: then every method takes the middle of each bin (end_aligned and end_aligned_spaced: no
    shift; dense: the middle start), except spaced_fixed, which is not random. Another `place` (0 to 1; 0.5 is the middle) gives
    another clip of the same action: that place in each bin, shift or start. For spaced_fixed 0.5 is the first frame of each bin.

    Raises:
        ValueError: `random` with fewer frames than `count`.
    """
    n = end - start + 1
    if method in END_ALIGNED:
        placed = math.floor(place * (2 * END_SHIFT + 1)) - END_SHIFT
        shift = min(placed if rng is None else int(rng.integers(-END_SHIFT, END_SHIFT + 1)), frames_after)
        if method == "end_aligned":
            return np.maximum(np.arange(end - count + 1, end + 1) + shift, 1)
        return np.maximum(end - END_WINDOW + 1 + shift + np.arange(count) * (END_WINDOW + 1) // count, 1)
    if method == "dense":
        starts = max(n - DENSE_FRAMES, 1)
        first = math.floor((n - DENSE_FRAMES) * place) if rng is None else int(rng.integers(starts))
        return start + (max(first, 0) + np.arange(count) * max(DENSE_FRAMES // count, 1)) % n
    if method == "random" and rng is not None:
        if n < count:
            raise ValueError(f"the action has {n} frames and --frame_method random needs {count} different ones")
        return start + np.sort(rng.choice(n, size=count, replace=False))
    bins = np.arange(count)
    if method == "spaced_fixed":
        offsets = np.full(count, (place - 0.5) % 1)
    elif rng is None or (method == "segments" and n < count):
        offsets = np.full(count, place if rng is None else 0.5)
    elif method == "segments":
        return start + bins * (n // count) + rng.integers(n // count, size=count)
    elif method in ("spaced_varied", "spaced_fixed_new"):
        offsets = np.full(count, rng.random())
    else:
        offsets = rng.random(count)
    return start + np.floor((bins + offsets) * (n / count)).astype(int)


def places_of_test(method: str, clips: int) -> list[float]:
    """The places (see `clip_frames`) of the clips of an action in a test with --test_clips. Two clips of method segments
    are those of TSM's twice_sample; clips of dense go from the first to the last start, as TSM's dense sampling."""
    if method == "dense" and clips > 1:
        return [index / (clips - 1) for index in range(clips)]
    return [(0.5 + index / clips) % 1 for index in range(clips)]


def epoch_order(count: int, seed: int, epoch: int, repeats: Sequence[int] | None = None) -> np.ndarray:
    """The order of `count` training actions in an epoch, for any number of ranks. `repeats` is how often each occurs; None
    means once."""
    rng = generator(seed, "order", epoch)
    return rng.permutation(count) if repeats is None else rng.permutation(np.repeat(np.arange(count), repeats))


def repeats_before(order: Sequence[int]) -> list[int]:
    """How often each item of an order occurs before its place in it."""
    seen: Counter[int] = Counter()
    before = []
    for item in order:
        before.append(seen[item])
        seen[item] += 1
    return before


def balancing_repeats(labels: Sequence[int]) -> list[int]:
    """How often to repeat each sample so that all classes occur about equally often; samples of the largest class once."""
    counts = {label: labels.count(label) for label in set(labels)}
    largest = max(counts.values())
    return [round(largest / counts[label]) for label in labels]


def rank_rows(batch: Sequence, rank: int, world_size: int) -> Sequence:
    """The rows of a global batch that belong to a rank: a contiguous block, in rank order."""
    rows_per_rank = len(batch) // world_size
    return batch[rank * rows_per_rank : (rank + 1) * rows_per_rank]
