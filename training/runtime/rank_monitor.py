"""Detects lost ranks: each rank has a connection to rank 0, beside those of gloo or nccl, and a thread that watches it.

The kernel closes the connections of a killed process at once. A node without power or network, and a stopped process, are
silent: each rank sends a heartbeat every second, and is lost after `patience_s` seconds of silence. Rank 0 tells the others
what it sees; a rank that loses rank 0 knows that by itself. Imports no torch.

A message is a line: its kind, the rank that it is about, and a text.

    here                the heartbeat
    bye                 the rank ends normally
    failed              the rank ends with an error of its own, which its log names
    leaving             the rank lost contact with another one, or a worker (then the text says how); it saves, then it ends
    ended               the rank said why it ends, and cannot save: it says so, or rank 0 lost it
    lost                rank 0 lost the rank, which had said nothing
"""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from training.runtime.interruption import ProcessLost
from training.runtime.ranks import Ranks

HEARTBEAT_S = 1.0
# After TERM: Slurm sends it to the other ranks of a job whose node failed, and KILL soon after (KillWait, 30 s by default)
TERMINATED_PATIENCE_S = 5.0
_CONNECT_S = 60.0
_TOKEN_S = 5.0  # a client that connects and does not say in time which rank it is, is not a rank
_TOKEN_BYTES = 100

FAILED = "ended with an error"
KILLED = "killed"


class RankMonitor:
    """The connections of one rank, and the thread that watches them.

    `on_loss` is called once, in a thread of its own, when this rank learns that another one is lost, failed or leaves.
    `is_terminated` says whether this process received TERM.

    Attributes:
        lost: the ranks that ended without saving, and how; it can still grow after `on_loss`.
        causes: what the ranks lost that leave because of a worker.
        ended: the ranks that write no checkpoint from now on, whatever they said before.
    """

    def __init__(
        self,
        ranks: Ranks,
        on_loss: Callable[[], None],
        is_terminated: Callable[[], bool],
        patience_s: float,
    ) -> None:
        self.ranks, self.on_loss, self.is_terminated, self.patience_s = ranks, on_loss, is_terminated, patience_s
        self.lost: dict[int, str] = {}
        self.causes: dict[int, str] = {}
        self.ended: set[int] = set()
        self.alarm = threading.Event()  # set with the first loss
        self._gone: set[int] = set()  # ranks whose connection may close: they said so
        self._peers: dict[int, socket.socket] = {}
        self._heard: dict[int, float] = {}  # monotonic time of the last message
        self._rest: dict[int, bytes] = {}  # the start of an incomplete line
        self._sending, self._stopped = threading.Lock(), threading.Event()
        self._server: socket.socket | None = None

    # ---------------------------------------------------------------------------------------------- connecting

    def listen(self) -> int:
        """On rank 0: open a port for the other ranks, and return its number."""
        waiting = self.ranks.world_size
        try:
            self._server = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=waiting)
        except (ValueError, OSError):  # this host has no IPv6
            self._server = socket.create_server(("", 0), backlog=waiting)
        return int(self._server.getsockname()[1])

    def start(self, port: int, token: str) -> None:
        """Connect to rank 0's `port`, or as rank 0 accept all other ranks, and start to watch. A connection without `token`
        is not a rank's.

        Raises:
            ProcessLost: a rank did not connect.
        """
        deadline = time.monotonic() + _CONNECT_S
        try:
            if self.ranks.is_first:
                self._accept_all(token, deadline)
            else:
                peer = socket.create_connection((self.ranks.address, port), timeout=_CONNECT_S)
                peer.sendall(f"{token} {self.ranks.rank}\n".encode())
                self._peers[0] = peer
        except OSError as error:
            raise ProcessLost(
                f"rank {self.ranks.rank} could not connect to the others at {self.ranks.address}:{port} ({error}): let the nodes reach each other's ports, then start the job again"
            ) from None
        for rank, peer in self._peers.items():
            peer.setblocking(False)
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._heard[rank], self._rest[rank] = time.monotonic(), b""
        threading.Thread(target=self._watch, name="rank monitor", daemon=True).start()

    def _accept_all(self, token: str, deadline: float) -> None:
        assert self._server is not None
        with self._server:
            while len(self._peers) < self.ranks.world_size - 1:
                self._server.settimeout(max(deadline - time.monotonic(), 0.1))
                peer, _ = self._server.accept()
                with suppress(OSError, ValueError):
                    said, rank = _first_line(peer).split()
                    if said == token:
                        self._peers[int(rank)] = peer
                        continue
                peer.close()

    # ------------------------------------------------------------------------------------------------ watching

    def _watch(self) -> None:
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            checked = time.monotonic()
            said = -HEARTBEAT_S
            while not self._stopped.is_set() and selector.get_map():
                ready = [key.data for key, _ in selector.select(HEARTBEAT_S / 2)]
                now = time.monotonic()
                if now - checked > 3 * HEARTBEAT_S:  # this process was suspended, and the others perhaps too
                    self._heard = dict.fromkeys(self._heard, now)
                checked = now
                for rank in ready:
                    if not self._receive(rank):
                        selector.unregister(self._peers[rank])
                        self._lose(rank, KILLED)
                for rank in self._silent(now):
                    self._lose(rank, f"silent for {now - self._heard[rank]:.0f} s")
                # not for each message received: two ranks would answer each other without end
                if now - said >= HEARTBEAT_S:
                    said = now
                    self._tell("here", self.ranks.rank)

    def _silent(self, now: float) -> list[int]:
        patience = min(self.patience_s, TERMINATED_PATIENCE_S) if self.is_terminated() else self.patience_s
        return [rank for rank, heard in self._heard.items() if now - heard > patience and rank not in self.ended]

    def _receive(self, rank: int) -> bool:
        """Read what a rank sent; returns whether its connection is still open."""
        try:
            received = self._peers[rank].recv(65536)
        except BlockingIOError:
            return True
        except OSError:
            received = b""
        self._heard[rank] = time.monotonic()
        *lines, self._rest[rank] = (self._rest[rank] + received).split(b"\n")
        for line in lines:
            with suppress(ValueError):  # a full buffer cut a message
                kind, about, text = line.decode(errors="replace").split(" ", 2)
                self._understand(kind, int(about), text)
        return bool(received)

    def _understand(self, kind: str, about: int, text: str) -> None:
        if kind == "here" or about == self.ranks.rank:
            return
        if kind == "leaving":
            if text:
                self.causes[about] = text
        else:
            self.ended.add(about)
        if kind == "lost":
            self.lost.setdefault(about, text)
        else:
            self._gone.add(about)
            if kind == "failed":
                self.lost.setdefault(about, FAILED)
        if kind != "bye":
            self._tell(kind, about, text)
        if kind not in ("bye", "ended"):
            self._raise_alarm()

    def _lose(self, rank: int, how: str) -> None:
        if self._stopped.is_set():
            return
        self.ended.add(rank)
        if rank in self._gone:
            self._tell("ended", rank)
            return
        self._gone.add(rank)
        self.lost[rank] = how
        self._tell("lost", rank, how)
        self._raise_alarm()

    def _raise_alarm(self) -> None:
        if not self.alarm.is_set():
            self.alarm.set()
            threading.Thread(target=self.on_loss, name="survivor", daemon=True).start()

    # ------------------------------------------------------------------------------------------------- telling

    def _tell(self, kind: str, about: int, text: str = "") -> None:
        """Send a message to rank 0; as rank 0 to all others, but only what concerns them."""
        if not self.ranks.is_first and about != self.ranks.rank:
            return
        line = f"{kind} {about} {' '.join(text.split())}\n".encode()
        with self._sending:
            for rank, peer in self._peers.items():
                if rank != about:
                    with suppress(OSError):  # it is lost, which `_watch` notices, or stopped, and its buffer is full
                        peer.send(line)

    @property
    def has_left(self) -> bool:
        """Whether this rank has told the others that it ends by itself."""
        return self._stopped.is_set()

    def leave(self, kind: str, text: str = "") -> None:
        """Tell the others that this rank ends: "bye", "failed", "leaving" or "ended"."""
        self._tell(kind, self.ranks.rank, text)
        if kind in ("bye", "failed"):
            self._stopped.set()


def _first_line(peer: socket.socket) -> str:
    """The first line that a client sends. What follows stays in the connection: it may be messages of the rank.

    Raises:
        OSError: it does not send a short line in time.
    """
    deadline, line = time.monotonic() + _TOKEN_S, b""
    while not line.endswith(b"\n"):
        peer.settimeout(max(deadline - time.monotonic(), 0.001))
        byte = peer.recv(1)
        if not byte or len(line) == _TOKEN_BYTES:
            raise ConnectionError("not a rank")
        line += byte
    return line.decode(errors="replace")


def named(ranks: Sequence[int], hosts: Sequence[str]) -> str:
    """'rank 1 on n2, rank 3 on n4'."""
    return ", ".join(f"rank {rank} on {hosts[rank]}" for rank in ranks)
