"""Ranks that are killed, silent, fail or leave are noticed by all others; those that say goodbye are not missed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from training.runtime import rank_monitor
from training.runtime.rank_monitor import FAILED, KILLED, RankMonitor
from training.runtime.ranks import Ranks

WORLD = 3


@pytest.fixture
def monitors(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[RankMonitor]]:
    """The monitors of three ranks, in this process."""
    monkeypatch.setattr(rank_monitor, "HEARTBEAT_S", 0.1)
    found = [
        RankMonitor(Ranks(rank, WORLD, rank, "127.0.0.1"), lambda: None, lambda: False, patience_s=600)
        for rank in range(WORLD)
    ]
    port = found[0].listen()
    threads = [threading.Thread(target=each.start, args=(port, "token")) for each in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    yield found
    for each in found:
        each.leave("bye")


def kill(monitor: RankMonitor) -> None:
    """Close its connections, as the kernel does for a killed process."""
    monitor._stopped.set()
    for peer in monitor._peers.values():
        peer.close()


def silence(monitor: RankMonitor) -> None:
    """Let it send nothing more, as a node without network does."""
    monitor._tell = lambda *_: None  # type: ignore[method-assign]


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize("lost", range(WORLD))
def test_all_others_learn_that_a_rank_was_killed(monitors: list[RankMonitor], lost: int):
    kill(monitors[lost])
    for other in (each for each in monitors if each.ranks.rank != lost):
        wait_for(other.alarm.is_set)
        assert other.lost == {lost: KILLED}


@pytest.mark.parametrize("lost", range(WORLD))
def test_a_silent_rank_is_lost_when_the_patience_ends(monitors: list[RankMonitor], lost: int):
    silence(monitors[lost])
    time.sleep(0.5)
    assert not any(each.alarm.is_set() for each in monitors)
    others = [each for each in monitors if each.ranks.rank != lost]
    for other in others:
        other.patience_s = 0.5 if lost == 0 or other.ranks.is_first else 600.0
    for other in others:
        wait_for(other.alarm.is_set)
        assert list(other.lost) == [lost]
        assert other.lost[lost].startswith("silent for")


@pytest.mark.parametrize("failing", range(WORLD))
def test_a_rank_with_an_error_of_its_own_says_so_first(monitors: list[RankMonitor], failing: int):
    monitors[failing].leave("failed")
    time.sleep(0.2)
    kill(monitors[failing])
    for other in (each for each in monitors if each.ranks.rank != failing):
        wait_for(other.alarm.is_set)
        assert other.lost == {failing: FAILED}


def test_a_rank_that_leaves_alarms_the_others_and_is_not_lost(monitors: list[RankMonitor]):
    monitors[1].leave("leaving", "Connection reset by peer")
    for other in (monitors[0], monitors[2]):
        wait_for(other.alarm.is_set)
        assert other.lost == {}


def test_ranks_that_say_goodbye_are_not_missed(monitors: list[RankMonitor]):
    for each in (monitors[0], monitors[2]):
        each.leave("bye")
    time.sleep(0.3)
    kill(monitors[0]), kill(monitors[2])
    time.sleep(0.5)
    assert not monitors[1].alarm.is_set()


def test_a_stranger_is_no_rank():
    monitor = RankMonitor(Ranks(0, 2, 0, "127.0.0.1"), lambda: None, lambda: False, 600)
    port = monitor.listen()
    import socket

    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(b"GET / HTTP/1.1\r\n")
    other = RankMonitor(Ranks(1, 2, 1, "127.0.0.1"), lambda: None, lambda: False, 600)
    thread = threading.Thread(target=other.start, args=(port, "token"))
    thread.start()
    monitor.start(port, "token")
    thread.join()
    assert list(monitor._peers) == [1]
    monitor.leave("bye"), other.leave("bye")
