"""Splits by event: over all folds each dive is tested once, and no event is in two parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.actions import Action, Dive, video_name
from data_preparation.annotations import write_split
from data_preparation.common.errors import UserError
from data_preparation.datasets import DataSet, Split
from training.config import TrainConfig
from training.data.lists import listed_actions
from training.data.splits import data_fingerprint, split_events, split_train_val

sizes = st.lists(st.integers(1, 9), min_size=4, max_size=15)


def dives_of(sizes: list[int]) -> list[Dive]:
    return [
        Dive(video_name(v), n, 1, 9, difficulty=3.0, final_score=60.0)
        for v, size in enumerate(sizes, 1)
        for n in range(size)
    ]


@given(sizes, st.integers(2, 4), st.integers(0, 1000), st.floats(0.3, 0.9))
def test_folds_over_events(sizes: list[int], folds: int, seed: int, ratio: float):
    dives = dives_of(sizes)
    config = TrainConfig(split="event", folds=folds, split_seed=seed, train_val_split_ratio=ratio)
    tested = []
    for fold in range(1, folds + 1):
        splits = split_events(dives, dataclasses.replace(config, fold=fold))
        events = [{d.video for d in part} for part in (splits.train, splits.val, splits.test)]
        assert all(events)
        assert sum(map(len, events)) == len(sizes)  # no event is in two parts
        assert sorted(d.key for part in (splits.train, splits.val, splits.test) for d in part) == [d.key for d in dives]
        assert splits == split_events(dives, dataclasses.replace(config, fold=fold))
        tested += [d.key for d in splits.test]
    assert sorted(tested) == [d.key for d in dives]


def test_the_seed_chooses_the_events():
    dives = dives_of([3] * 12)
    held_out = {
        tuple(sorted({d.video for d in split_events(dives, TrainConfig(split="event", split_seed=seed)).test}))
        for seed in range(5)
    }
    assert len(held_out) > 1


@pytest.mark.parametrize(
    ("flags", "words"),
    [({"folds": 5}, "needs 5 events"), ({"folds": 2, "fold": 3}, "is larger than --folds 2"), ({"folds": 4}, None)],
)
def test_too_few_events_are_named(flags: dict, words: str | None):
    if words is None:
        assert split_events(dives_of([2] * 4), TrainConfig(split="event", **flags)).test
        return
    with pytest.raises(UserError, match=words):
        split_events(dives_of([2] * 4), TrainConfig(split="event", **flags))


def test_the_fingerprint_sees_every_label():
    dive = Dive(
        "01",
        1,
        1,
        9,
        difficulty=3.0,
        final_score=60.0,
        position=1,
        armstand=0,
        rotation_type=2,
        ss_no=3,
        tw_no=0,
        caption=("a",),
    )
    changes = [{"end_frame": 10}, {"final_score": 61.0}, {"difficulty": 3.1}, {"position": 2}, {"caption": ("b",)}]
    prints = {data_fingerprint([dataclasses.replace(dive, **change)]) for change in [{}, *changes]}
    assert len(prints) == 6


def test_events_are_those_of_all_published_folds_and_left_out_actions_are_in_no_list(tmp_path: Path):
    """A data set with two published folds has --fold 1 to 5 of --split event."""
    dives = {dive.key: dive for dive in dives_of([2] * 6)}
    keys = tuple(dives)
    data = DataSet(dict(dives), {"fold1": Split(keys[:8], keys[8:]), "fold2": Split(keys[8:], keys[:8])})
    write_split(tmp_path / "out.csv", keys[:1])
    config = TrainConfig(leave_out=str(tmp_path / "out.csv"))
    for fold in (1, 5):
        train, test = listed_actions(dataclasses.replace(config, split="event", fold=fold), data)
        assert [dive.key for dive in (*train, *test)] == list(keys[1:])
    train, test = listed_actions(dataclasses.replace(config, fold=2), data)
    assert ([d.key for d in train], [d.key for d in test]) == (list(keys[8:]), list(keys[1:8]))
    with pytest.raises(UserError, match="no split for --fold 3"):
        listed_actions(dataclasses.replace(config, fold=3), data)


labelled = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), min_size=2, max_size=60)


@given(labelled, st.floats(0.2, 0.9), st.integers(0, 100))
def test_a_drawn_split_cuts_no_group(rows: list[tuple[int, int]], ratio: float, seed: int):
    actions = [Action("a", i, 1, 9, group=f"g{group}", label=label) for i, (group, label) in enumerate(rows)]
    groups = {action.group for action in actions}
    if len(groups) == 1:
        with pytest.raises(UserError, match=f"all {len(actions)} actions of the train list are of one group"):
            split_train_val(actions, ratio, seed)
        return
    train, val = split_train_val(actions, ratio, seed)
    assert train
    assert val
    assert sorted(a.number for a in (*train, *val)) == list(range(len(actions)))
    assert not {a.group for a in train} & {a.group for a in val}
    assert (train, val) == split_train_val(actions, ratio, seed)


@given(st.lists(st.integers(2, 40), min_size=2, max_size=5), st.floats(0.2, 0.9), st.integers(0, 100))
def test_a_drawn_split_keeps_the_balance_of_the_classes(sizes: list[int], ratio: float, seed: int):
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]
    actions = [Action("a", i, 1, 9, label=label) for i, label in enumerate(labels)]
    train, _ = split_train_val(actions, ratio, seed)
    for label, size in enumerate(sizes):
        assert abs(sum(a.label == label for a in train) - ratio * size) <= 1
