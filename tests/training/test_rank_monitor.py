"""Ranks that are killed, silent, fail or leave are noticed by all others; those that say goodbye are not missed."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress

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
    """End its connections, as the kernel does for a killed process. Not `close`: the thread of the monitor still uses the sockets."""
    monitor._stopped.set()
    for peer in monitor._peers.values():
        with suppress(OSError):  # the other end closed it
            peer.shutdown(socket.SHUT_RDWR)


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
    monitors[1].leave("leaving", "a worker died")
    for other in (monitors[0], monitors[2]):
        wait_for(other.alarm.is_set)
        assert (other.lost, other.causes, other.ended) == ({}, {1: "a worker died"}, set())


@pytest.mark.parametrize("leaving", range(WORLD))
@pytest.mark.parametrize("how", ["is killed", "cannot save"])
def test_all_others_learn_that_a_rank_that_leaves_cannot_save(monitors: list[RankMonitor], leaving: int, how: str):
    others = [each for each in monitors if each.ranks.rank != leaving]
    monitors[leaving].leave("leaving")
    for other in others:
        wait_for(other.alarm.is_set)
    kill(monitors[leaving]) if how == "is killed" else monitors[leaving].leave("ended")
    for other in others:
        wait_for(lambda other=other: other.ended == {leaving})
        assert other.lost == {}


def test_ranks_that_say_goodbye_are_not_missed(monitors: list[RankMonitor]):
    for each in (monitors[0], monitors[2]):
        each.leave("bye")
    time.sleep(0.3)
    kill(monitors[0]), kill(monitors[2])
    time.sleep(0.5)
    assert not monitors[1].alarm.is_set()


def test_idle_ranks_send_one_message_in_each_beat(monitors: list[RankMonitor]):
    sent, tell, started = [], monitors[0]._tell, time.monotonic()

    def count(*message: object) -> None:
        sent.append(message)
        tell(*message)

    monitors[0]._tell = count  # type: ignore[method-assign]
    time.sleep(5 * rank_monitor.HEARTBEAT_S)
    wait_for(lambda: sent)
    found = len(sent)
    assert found <= (time.monotonic() - started) / rank_monitor.HEARTBEAT_S + 1


def test_messages_right_after_the_token_are_not_lost():
    monitor = RankMonitor(Ranks(0, 2, 0, "127.0.0.1"), lambda: None, lambda: False, 600)
    port = monitor.listen()
    with socket.create_connection(("127.0.0.1", port)) as rank:
        rank.sendall(b"token 1\nfailed 1 \n")
        monitor.start(port, "token")
        wait_for(monitor.alarm.is_set)
    assert monitor.lost == {1: FAILED}
    monitor.leave("bye")


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\n", b"x" * 10000], ids=["nothing", "a request", "no line"])
def test_a_stranger_is_no_rank(monkeypatch: pytest.MonkeyPatch, said: bytes):
    monkeypatch.setattr(rank_monitor, "_TOKEN_S", 0.2)
    monitor = RankMonitor(Ranks(0, 2, 0, "127.0.0.1"), lambda: None, lambda: False, 600)
    port = monitor.listen()
    stranger = socket.create_connection(("127.0.0.1", port))
    stranger.sendall(said)
    other = RankMonitor(Ranks(1, 2, 1, "127.0.0.1"), lambda: None, lambda: False, 600)
    thread = threading.Thread(target=other.start, args=(port, "token"))
    thread.start()
    monitor.start(port, "token")
    thread.join()
    assert list(monitor._peers) == [1]
    monitor.leave("bye"), other.leave("bye"), stranger.close()
