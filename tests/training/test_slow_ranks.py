"""A rank that is slow for 20 steps in a row is named, and no longer when it has recovered."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import REPOSITORY, data_flags, run_python, tiny_model
from training.runtime import slow_ranks
from training.runtime.slow_ranks import SLOW_STEPS, OwnTime, SlowRanks, Stopwatch, median_of_the_others

HOSTS = ["n1", "n2", "n3", "n4"]
times_of_ranks = st.lists(st.floats(0.001, 10), min_size=2, max_size=9)


def steps(count: int, *own: float, loading: float = 0.0) -> list[list[OwnTime]]:
    """The times of `count` equal steps, a list for each rank."""
    return [[OwnTime(seconds, min(loading, seconds))] * count for seconds in own]


@given(times_of_ranks)
def test_a_rank_is_compared_with_the_median_of_the_other_ranks(own: list[float]):
    for rank, seconds in enumerate(own):
        of_others = median(own[:rank] + own[rank + 1 :])
        assert (seconds >= 2 * median_of_the_others(own)) == (seconds >= 2 * of_others)


@given(times_of_ranks, st.lists(st.integers(1, 7), min_size=6, max_size=12))
def test_the_intervals_of_the_log_do_not_matter(own: list[float], intervals: list[int]):
    one_by_one, at_once = SlowRanks(), SlowRanks()
    reached = [rank for n in intervals for rank in one_by_one.add(own_hosts(own), steps(n, *own))[0]]
    assert len(reached) == len(set(reached))
    at_once.add(own_hosts(own), steps(sum(intervals), *own))
    assert one_by_one.streaks == at_once.streaks
    assert set(one_by_one.named) == set(at_once.named)


def own_hosts(own: list[float]) -> list[str]:
    return [f"n{rank}" for rank in range(len(own))]


def test_a_slow_rank_is_named_until_it_recovers():
    tracked = SlowRanks()
    assert tracked.add(HOSTS, steps(SLOW_STEPS - 1, 1, 1, 2, 1)) == ([], [])
    (named,), recovered = tracked.add(HOSTS, steps(1, 1, 1, 2, 1))
    assert (named.rank, named.host, named.own_s, named.others_s, recovered) == (2, "n3", 2, 1, [])
    assert "rank 2 on n3 is slow: 2000 ms of its own per step, the median of the others is 1000 ms" in str(named)
    assert tracked.add(HOSTS, steps(5, 1, 1, 3, 1)) == ([], [])  # once is enough
    assert tracked.named[2].own_s == 3
    assert tracked.add(HOSTS, steps(1, 1, 1, 1.9, 1)) == ([], [2])
    assert tracked.named == {}


def test_a_rank_that_recovers_before_the_next_line_is_named_once():
    tracked = SlowRanks()
    times = [early + late for early, late in zip(steps(SLOW_STEPS, 1, 9, 1, 1), steps(3, 1, 1, 1, 1), strict=True)]
    slow, recovered = tracked.add(HOSTS, times)
    assert [each.rank for each in slow] == [1]
    assert recovered == []
    assert tracked.named == {}


@pytest.mark.parametrize(("loading", "mainly"), [(2.5, "loading"), (0.2, "computing")])
def test_the_text_says_where_the_time_is_lost(loading: float, mainly: str):
    times = steps(SLOW_STEPS, 1, 1, 1, loading=0.1) + steps(SLOW_STEPS, 3, loading=loading)
    (named,), _ = SlowRanks().add(HOSTS, times)
    assert named.mainly == mainly


def test_of_two_ranks_the_other_one_is_the_measure():
    (named,), _ = SlowRanks().add(["n1", "n2"], steps(SLOW_STEPS, 1, 2))
    assert (named.rank, named.others_s) == (1, 1)


def test_the_stopwatch_ends_at_the_first_exchange(monkeypatch: pytest.MonkeyPatch):
    clock = iter([0.0, 0.0, 1.0, 3.0, 10.0, 10.0, 10.5, 11.0])
    monkeypatch.setattr(slow_ranks.time, "perf_counter", lambda: next(clock))
    watch = Stopwatch(torch.device("cpu"))
    for _ in range(2):
        watch.start()
        watch.loaded()
        watch.exchange()
        watch.exchange()  # later collectives of the step do not count
    assert watch.take() == [OwnTime(3, 1), OwnTime(1, 0.5)]
    assert watch.take() == []


@pytest.mark.slow
def test_of_three_ranks_the_one_that_sleeps_is_named(dataset: Path, tmp_path: Path):
    path = str(REPOSITORY / "tests" / "slow_steps")
    env = {"PYTHONPATH": path, "DEEPSPORTS_TEST_STEP_S": "0.2", "DEEPSPORTS_TEST_SLOW_RANK": "2"}
    port = 20000 + os.getpid() % 9000
    flags = [*data_flags(dataset), *tiny_model(), "--runs_dir", tmp_path, "--run_name", "a", "--evaluate", "False"]
    flags += ["--batch_size", 3, "--epochs", 3, "--log_every", 5]
    ranks = ["-m", "torch.distributed.run", "--nproc_per_node", 3, "--master_port", port]
    out = run_python(*ranks, "-m", "training.train", *flags, env=env).stderr
    assert "rank 2 on " in out
    assert "of its own per step" in out
    assert "it loses the time computing" in out
    assert "rank 2 on " in (tmp_path / "a" / "progress.json").read_text()
