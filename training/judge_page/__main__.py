"""Serve the judge page of a run: drop a clip in the browser, trim it, see score, interval and explanation.

    python -m training.judge_page --run runs/<name> [--port 8765]

The page listens on 127.0.0.1 only. The command prints its address, and the ssh command that reaches it from another computer.
"""

from __future__ import annotations

import functools
import getpass
import platform
import secrets
import shlex
import signal
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from data_preparation.common.command_line import flag, parse, run
from data_preparation.common.errors import UserError
from training.judge_page.app import JudgePage
from training.judge_page.clips import Clips, PrivateFolder
from training.judge_page.forms import MIB
from training.judge_page.judging import load_judge
from training.judge_page.worker import Worker

HOST = "127.0.0.1"
_HELD_PER_WAITING = 4  # clips that are held for each place in the queue: people need time to trim and to look
_CLOSING_S = 2  # seconds that open connections get at the end


@dataclass(frozen=True)
class JudgeConfig:
    """Serve a local page that scores clips with a trained run."""

    run: Path = flag(None, "Run folder.", path=True)
    port: int = flag(8765, "Port of the page on 127.0.0.1; 0 takes a free one.", minimum=0, maximum=65535)
    upload_limit: int = flag(512, "Largest upload in MiB.", minimum=1, maximum=65536)
    queue: int = flag(8, "Most clips that wait for the worker; further ones are refused.", minimum=1, maximum=1000)
    time_limit: float = flag(300.0, "Most seconds for reading or scoring one clip.", minimum=1)
    keep: float = flag(15.0, "Minutes until a clip that nobody looks at is deleted.", minimum=1)
    explain: bool = flag(True, "Also show what the network looked at, which takes longer.")
    gpu: bool = flag(True, "Use a GPU if there is one.")

    def __post_init__(self) -> None:
        if self.run is None:
            raise UserError("--run is missing: give the run folder, such as --run runs/NAME")


def open_socket(port: int) -> socket.socket:
    """A socket on 127.0.0.1.

    Raises:
        UserError: the port is in use or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()
    except OSError as error:
        listener.close()
        raise UserError(
            f"--port {port} cannot be used ({error.strerror}): give another one, or 0 for a free one"
        ) from None
    return listener


def job_line(run: str) -> str:
    """The command that starts the page in an interactive job."""
    script = f"source job_files/environment.sh; python -m training.judge_page --run {shlex.quote(run)}"
    return f"srun --pty --cpus-per-task=4 --mem=16G --time=2:00:00 bash -c {shlex.quote(script)}"


def tunnel_line(port: int, user: str, node: str) -> str:
    """The command that makes the page of a compute node reachable on another computer."""
    return f"ssh -N -L {port}:{HOST}:{port} -J {user}@LOGIN_NODE {user}@{node}"


def announcement(port: int, token: str, run: Path) -> str:
    """What the command prints: the address, and how to reach it from another computer."""
    return f"""\
The judge page is ready. Ctrl-C ends it. Its address on this machine, {platform.node()}:

    http://{HOST}:{port}/{token}/

From another computer, start a tunnel there and open the same address (on a login node, leave out -J and its value):

    {tunnel_line(port, getpass.getuser(), platform.node())}

In an interactive job the page starts with:

    {job_line(str(run))}
"""


def main(argv: Sequence[str]) -> int | None:
    config = parse(JudgeConfig, argv, prog="python -m training.judge_page")
    listener = open_socket(config.port)
    load = functools.partial(load_judge, config.run, gpu=config.gpu, with_explanation=config.explain)
    worker = Worker(load, config.queue, config.time_limit)

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with listener, PrivateFolder() as folder:
        signal.signal(signal.SIGTERM, end)
        if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
            signal.signal(signal.SIGHUP, end)
        try:
            facts = worker.start()
            clips = Clips(folder, _HELD_PER_WAITING * config.queue, 60 * config.keep)
            page = JudgePage(secrets.token_urlsafe(24), facts, clips, worker, config.upload_limit * MIB)
            print(announcement(listener.getsockname()[1], page.token, config.run), flush=True)
            serve(page, listener)
        finally:
            worker.stop()
    return None


def serve(page: JudgePage, listener: socket.socket) -> None:
    """Serve the page until a signal ends it.

    Raises:
        SystemExit, KeyboardInterrupt: a signal did.
    """
    # no access log: its lines would hold the token. The app logs its own errors, uvicorn only that a request was cut off at the end
    settings = uvicorn.Config(
        page.app(), log_level="critical", access_log=False, server_header=False, timeout_graceful_shutdown=_CLOSING_S
    )
    server = uvicorn.Server(settings)
    hung_up: list[int] = []

    def hang_up(number: int, frame: FrameType | None) -> None:
        hung_up.append(number)
        server.should_exit = True

    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, hang_up)  # uvicorn does the same for TERM and INT, and raises them again
    server.run(sockets=[listener])
    if hung_up:
        raise SystemExit(128 + hung_up[0])


if __name__ == "__main__":
    run(main)
