"""Frames of a clip, the split, the order: rules over all inputs."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Dive
from training.config import FRAME_METHODS
from training.data.sampling import balancing_repeats, clip_frames, epoch_order, needed_frames, rank_rows
from training.data.splits import split_train_val
from training.runtime.seeding import derive_seed, generator

BINNED = [m for m in FRAME_METHODS if "spaced" in m and "end" not in m]


def dives(count: int) -> list[Dive]:
    return [Dive("01", i + 1, 100 * i + 1, 100 * i + 80, difficulty=3.0, final_score=60.0) for i in range(count)]


@given(
    start=st.integers(1, 10_000), n=st.integers(1, 300), count=st.integers(1, 128), seed=st.integers(0, 99),
    method=st.sampled_from(BINNED), evaluate=st.booleans(),
)  # fmt: skip
def test_binned_methods_take_one_frame_of_each_bin_inside_the_dive(start, n, count, seed, method, evaluate):
    frames = clip_frames(start, start + n - 1, count, method, None if evaluate else generator(seed))
    assert len(frames) == count
    assert frames.min() >= start
    assert frames.max() <= start + n - 1
    assert (np.diff(frames) >= 0).all()
    bin_starts = np.arange(count) * n / count
    # the original multiplies with the rounded step, so a bin that begins with a whole frame may begin a hair before it
    assert (frames >= start + np.floor(bin_starts - 1e-6)).all()
    assert (frames <= start + np.floor(bin_starts) + np.ceil(n / count)).all()


def test_tsm_takes_the_frames_of_the_original():
    known = {5: [1, 1, 2, 3, 3, 4, 5, 5], 8: list(range(1, 9)), 9: [1, 2, 3, 4, 6, 7, 8, 9]}
    for n, frames in known.items():
        assert clip_frames(1, n, 8, "segments", None).tolist() == frames
    assert clip_frames(1, 5, 8, "segments", generator(0)).tolist() == known[5]
    for seed in range(20):
        frames = clip_frames(1, 45, 8, "segments", generator(seed))
        assert ((frames - 1) // 5 == np.arange(8)).all()  # segments of five frames; the last five are not used
        dense = clip_frames(11, 110, 8, "dense", generator(seed))
        assert set(np.diff(dense)) == {8}
        assert dense[0] in range(11, 11 + 36)
    assert {int(clip_frames(1, 67, 8, "dense", generator(seed))[0]) for seed in range(40)} == {1, 2, 3}
    assert clip_frames(1, 100, 8, "dense", None)[0] == 19
    assert clip_frames(11, 30, 8, "dense", generator(1)).tolist() == [11, 19, 27, 15, 23, 11, 19, 27]


def test_mscadc_takes_the_frames_of_the_original():
    offsets = [0, 6, 13, 19, 26, 32, 39, 45, 52, 58, 65, 71, 78, 84, 91, 97]
    frames = clip_frames(1, 1459, 16, "end_aligned_spaced", None)
    assert frames.tolist() == [1357 + offset for offset in offsets]
    shifts = {int(clip_frames(1, 1459, 16, "end_aligned_spaced", generator(s))[0]) - 1357 for s in range(100)}
    assert shifts == set(range(-3, 4))
    assert needed_frames(1400, 1459, 16, "end_aligned_spaced") == (1354, 1459)
    assert clip_frames(1, 50, 16, "end_aligned_spaced", None).min() == 1


@given(n=st.integers(8, 200), seed=st.integers(0, 99))
def test_random_takes_different_frames(n, seed):
    frames = clip_frames(5, 5 + n - 1, 8, "random", generator(seed))
    assert len(set(frames.tolist())) == 8
    assert frames.min() >= 5
    assert frames.max() <= 5 + n - 1


def test_random_refuses_a_dive_that_is_too_short():
    with pytest.raises(ValueError, match="7 frames"):
        clip_frames(1, 7, 8, "random", generator(0))


@given(end=st.integers(1, 500), count=st.integers(16, 110), seed=st.integers(0, 99), after=st.integers(0, 3))
def test_end_aligned_is_consecutive_and_stays_on_disk(end, count, seed, after):
    frames = clip_frames(max(end - 50, 1), end, count, "end_aligned", generator(seed), frames_after=after)
    assert frames.max() <= end + after
    assert set(np.diff(frames)) <= {0, 1}
    first, last = needed_frames(max(end - 50, 1), end, count, "end_aligned")
    assert frames.min() >= first
    assert last == end
    fixed = clip_frames(max(end - 50, 1), end, count, "end_aligned", None)
    assert fixed[-1] == end


def test_the_originals_methods_by_hand():
    assert clip_frames(10, 19, 5, "spaced_fixed", None).tolist() == [10, 12, 14, 16, 18]
    assert clip_frames(10, 19, 5, "spaced_varied_new", None).tolist() == [11, 13, 15, 17, 19]
    varied = clip_frames(10, 29, 5, "spaced_varied", generator(1))
    assert len(set(np.diff(varied))) == 1  # one common shift
    assert {len(set(np.diff(clip_frames(10, 109, 5, "spaced_varied_new", generator(s))))) for s in range(9)} != {1}


@given(count=st.integers(2, 300), ratio=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_split_parts_the_list_and_is_seeded(count, ratio, seed):
    listed = dives(count)
    train, val = split_train_val(listed, ratio, seed)
    assert sorted(d.number for d in [*train, *val]) == [d.number for d in listed]
    assert train
    assert val
    assert abs(len(train) - count * ratio) <= 1
    assert (train, val) == split_train_val(listed, ratio, seed)


@given(count=st.integers(1, 200), share=st.integers(1, 5), world=st.integers(1, 4), epoch=st.integers(0, 5))
def test_every_number_of_ranks_sees_the_same_global_batches(count, share, world, epoch):
    size = share * world
    order = epoch_order(count, 3, epoch)
    for step in range(count // size):
        batch = order[step * size : (step + 1) * size]
        assert np.concatenate([rank_rows(batch, r, world) for r in range(world)]).tolist() == batch.tolist()


def test_draws_depend_on_every_part_and_nothing_else():
    assert derive_seed(1, "clip", 2, 3, 4) == derive_seed(1, "clip", 2, 3, 4)
    assert len({derive_seed(1, "a"), derive_seed(1, "b"), derive_seed("1a"), derive_seed(11), derive_seed(1, 1)}) == 5
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 0, 1).tolist()
    assert epoch_order(50, 0, 0).tolist() != epoch_order(50, 1, 0).tolist()


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), seed=st.integers(0, 99), epoch=st.integers(0, 9))
def test_an_epoch_may_repeat_samples_so_that_classes_balance(labels: list[int], seed: int, epoch: int):
    repeats = balancing_repeats(labels)
    order = epoch_order(len(labels), seed, epoch, repeats)
    assert np.array_equal(order, epoch_order(len(labels), seed, epoch, repeats))
    seen = np.bincount(order, minlength=len(labels))
    assert seen.tolist() == repeats
    of_class = {label: seen[np.array(labels) == label].sum() for label in set(labels)}
    largest = max(labels.count(label) for label in labels)
    # rounded to whole repeats of each sample
    assert all(abs(of_class[label] - largest) <= labels.count(label) / 2 for label in of_class)
