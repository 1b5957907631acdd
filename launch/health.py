"""Checks of a node before it trains, and what to do without a sick node. Imports no torch.

The first rank of each node checks the folders (there, answering, writable where needed) and the GPUs. A node without a fault
trains at once. A node with a fault compares its faults with those of the other nodes, in the job's folder: what all nodes
have, such as a missing data set, is the user's to fix, and the training names it. What only some have makes these sick: they
end with Status.SICK_NODE, and the job is requeued without them.

    ended-<n>/node-<host>.json    the faults of a node in start n
    sick_nodes.json               the nodes that the job has left, with their faults
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from data_preparation.common.errors import UserError
from launch import slurm
from launch.slurm import SlurmError
from training.config import TrainConfig
from training.runtime.ranks import JobNodes, allocated_gpus
from training.runtime.run_folder import write_json

ANSWER_S = 30  # a check that takes longer has failed: the file system or the driver hangs
_OTHERS_S = 60  # how long a node with a fault waits for the other nodes
MAX_SICK_NODES = 4  # that a job leaves; more faults are probably not the nodes'
SICK_NODES = "sick_nodes.json"

# errors that come from a node or its file system, and hardly from a wrong path or a quota
_OF_A_NODE = {
    errno.EHOSTDOWN, errno.EIO, errno.ENODEV, errno.ENOTCONN, errno.ENXIO, errno.EREMOTEIO, errno.EROFS, errno.ESTALE,
    errno.ETIMEDOUT,
}  # fmt: skip


class Fault(NamedTuple):
    """A fault of a node. Nodes with the same fault have the same `key`. A `certain` fault is the node's even if there is no
    other node to compare it with."""

    key: str
    text: str
    certain: bool


# ------------------------------------------------------------------------------------------------------------- checks

Check = Callable[[], list[Fault]]


class RunningCheck:
    """A check in a process of its own. One that hangs in the file system or in a driver cannot even be killed, so nothing
    waits for it. Start it before the process has threads."""

    def __init__(self, check: Callable[[], Any]) -> None:
        self.started = time.monotonic()
        self._answer, writer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                os.write(writer, json.dumps(check()).encode())
            finally:
                os._exit(0)  # without the handlers and buffers of the parent
        os.close(writer)

    def result(self, seconds: float) -> Any | None:
        """What the check returned, as JSON, or None if it has not answered so many seconds after its start."""
        text = b""
        try:
            while select.select([self._answer], [], [], max(self.started + seconds - time.monotonic(), 0))[0]:
                part = os.read(self._answer, 65536)
                if not part:
                    os.waitpid(self._pid, 0)
                    return json.loads(text) if text else None
                text += part
            os.kill(self._pid, signal.SIGKILL)
            return None
        finally:
            os.close(self._answer)


def folder_faults(name: str, folder: Path, *, writes: bool, needed: bool = True, shared: bool = True) -> list[Fault]:
    """Faults of a folder; with `writes` a temporary file must fit. Of a folder that is not `needed`, a read-only file system is
    a fault only in comparison with other nodes. A full disk or quota of a `shared` folder is no node's fault: the training names
    it."""
    doing = "cannot be read"
    try:
        with os.scandir(folder) as entries:
            next(entries, None)
        if writes:
            doing = "is not writable"
            with tempfile.TemporaryFile(dir=folder) as file:
                file.write(b"\0" * 4096)
                file.flush()
    except OSError as error:
        code = error.errno or 0
        if shared and code in (errno.ENOSPC, errno.EDQUOT):
            return []
        certain = code in _OF_A_NODE and (needed or code != errno.EROFS)
        return [Fault(f"{name} {errno.errorcode.get(code, code)}", f"{folder} {doing} ({error.strerror})", certain)]
    return []


def temporary_folder_fault() -> list[Fault]:
    """A fault if no temporary folder can be used. Nodes have one each, so it is the node's."""
    try:
        folder = Path(tempfile.gettempdir())
        return [f._replace(certain=True) for f in folder_faults("TMPDIR", folder, writes=True, shared=False)]
    except FileNotFoundError:
        return [Fault("TMPDIR none", "no temporary folder is writable (TMPDIR, /tmp, /var/tmp)", True)]


_GPU_FIELDS = ("index", "uuid", "ecc.errors.uncorrected.volatile.total", "retired_pages.pending")
_ROW_FIELDS = ("gpu_uuid", "remapped_rows.pending", "remapped_rows.failure")
# a value that is neither 0 nor No, nor missing ([N/A], [Not Supported]), is a fault of the GPU
_GPU_FAULTS = {
    "ecc.errors.uncorrected.volatile.total": "uncorrected memory errors since it was reset",
    "retired_pages.pending": "memory pages to retire at its next reset",
    "remapped_rows.pending": "memory rows to remap at its next reset",
    "remapped_rows.failure": "memory rows that could not be remapped",
}


def gpu_faults(allocated: str | None) -> list[Fault]:
    """Faults of the allocated GPUs ('0,1'; of all that are shown if nvidia-smi does not show these numbers), as nvidia-smi
    reports them; none if it is not installed. Fields that it does not know are left out."""
    host = socket.gethostname()
    try:
        shown = _nvidia_smi("gpu", _GPU_FIELDS)
        rows = {row["gpu_uuid"]: row for row in _nvidia_smi("remapped-rows", _ROW_FIELDS)}
    except FileNotFoundError:
        return []
    except subprocess.CalledProcessError as error:
        reason = (error.stdout.strip().splitlines() or [f"status {error.returncode}"])[-1]
        return [Fault(f"GPU on {host}", f"a GPU does not answer (nvidia-smi: {reason})", True)]
    wanted = set((allocated or "").split(","))
    if wanted <= {gpu["index"] for gpu in shown}:
        shown = [gpu for gpu in shown if gpu["index"] in wanted]
    found = []
    for gpu in shown:
        values = {**rows.get(gpu["uuid"], {}), **gpu}
        if own := [text for name, text in _GPU_FAULTS.items() if _is_fault(values.get(name, ""))]:
            found.append(Fault(f"GPU {gpu['uuid']}", f"GPU {gpu['index']} has {' and '.join(own)}", True))
    return found


def _nvidia_smi(what: str, wanted: Sequence[str]) -> list[dict[str, str]]:
    """Fields of each GPU. Older versions lack some fields, or the whole query.

    Raises:
        FileNotFoundError: nvidia-smi is not installed. CalledProcessError: it fails, for example because a GPU is lost.
    """
    known = subprocess.run(["nvidia-smi", f"--help-query-{what}"], capture_output=True, text=True, errors="replace")
    fields = [name for name in wanted if f'"{name}"' in known.stdout]
    if known.returncode or not fields:
        if what == "gpu":  # which every version has
            raise subprocess.CalledProcessError(known.returncode, "nvidia-smi", known.stdout + known.stderr)
        return []
    command = ["nvidia-smi", f"--query-{what}={','.join(fields)}", "--format=csv,noheader,nounits"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    answer.check_returncode()
    lines = (line.split(",") for line in answer.stdout.splitlines() if line.count(",") == len(fields) - 1)
    return [dict(zip(fields, map(str.strip, values), strict=True)) for values in lines]


def _is_fault(value: str) -> bool:
    return value == "Yes" or (value.isdigit() and int(value) > 0)


def checks_of(config: TrainConfig, job: Path, env: Mapping[str, str] = os.environ) -> dict[str, Check]:
    """The checks of a node, by the name of what they check."""
    folders = {
        "--runs_dir": (job, True, True),
        "--root_dir": (config.root_dir, False, True),
        "home": (Path.home(), True, False),
    }
    if scratch := env.get("DEEPSPORTS_SCRATCH"):
        folders["scratch"] = (Path(scratch), True, False)
    checks: dict[str, Check] = {
        str(path): partial(folder_faults, name, path, writes=writes, needed=must)
        for name, (path, writes, must) in folders.items()
    }
    checks["the temporary folder"] = temporary_folder_fault
    if config.gpu and (given := allocated_gpus(env)):
        checks["nvidia-smi"] = partial(gpu_faults, given)
    return checks


# ------------------------------------------------------------------------------------------------------------ decision


def sick_and_common(
    own: Sequence[Fault], others: Sequence[Collection[str]], left: Collection[str]
) -> tuple[list[Fault], list[Fault]]:
    """(the faults that make this node sick, the faults that are not the node's).

    `others` has the keys of the faults of each other node of this start that is known, `left` the keys of the faults of nodes
    that the job has left. With other nodes, a fault that all of them have is common, and any other fault makes this node sick.
    Without, a fault that an earlier node had too is common, and of the others the certain ones make this node sick.
    """
    common = [f for f in own if (all(f.key in keys for keys in others) if others else f.key in left)]
    sick = [f for f in own if f not in common and (others or f.certain)]
    return sick, common


class NodeCheck:
    """The checks of this node: start them early, and call `result` when their answers are needed."""

    def __init__(self, config: TrainConfig, job: Path, end_folder: Path, nodes: JobNodes) -> None:
        self.job, self.nodes = job, nodes.count
        self.host = nodes.node or socket.gethostname()
        self.record = end_folder / f"node-{self.host}.json"
        self._running = {name: RunningCheck(check) for name, check in checks_of(config, job).items()}

    def result(self) -> list[str]:
        """Why this node is sick; [] if it can train.

        Raises:
            UserError: a file system fails on every node of the job.
        """
        own: list[Fault] = []
        for name, running in self._running.items():
            found = running.result(ANSWER_S)
            if found is None:
                own.append(Fault(f"{name} no answer", f"{name} did not answer within {ANSWER_S} s", True))
            else:
                own += [Fault(*each) for each in found]
        if not own:
            with suppress(UserError):
                write_json(self.record, {"faults": []})
            return []
        # the job's folder may be what does not answer
        decided = RunningCheck(lambda: self._decide(own)).result(_OTHERS_S + ANSWER_S)
        sick, common = decided or ([f.text for f in own if f.certain], [])
        if common and not sick:
            raise UserError.of(
                f"{text}, on every node of the job: choose another folder, or ask your site's support"
                for text in common
            )
        return sick

    def _decide(self, own: Sequence[Fault]) -> tuple[list[str], list[str]]:
        """(texts of the faults that make this node sick, texts of certain faults that all nodes have). Records the first."""
        faults = [fault._asdict() for fault in own]
        with suppress(UserError):
            write_json(self.record, {"faults": faults})
        deadline = time.monotonic() + _OTHERS_S
        while len(others := self._others()) < self.nodes - 1 and time.monotonic() < deadline:
            time.sleep(0.2)
        left = {key for faults in read_sick_nodes(self.job).values() for key in faults}
        sick, common = sick_and_common(own, others, left)
        if sick:
            with suppress(UserError):
                write_json(self.record, {"faults": faults, "sick": {f.key: f.text for f in sick}})
        return [f.text for f in sick], [f.text for f in common if f.certain]

    def _others(self) -> list[set[str]]:
        """The keys of the faults of each other node that has recorded them."""
        found = []
        for path in self.record.parent.glob("node-*.json"):
            with suppress(OSError, ValueError, TypeError, KeyError):
                if path != self.record:
                    found.append({fault["key"] for fault in json.loads(path.read_text())["faults"]})
        return found


# ------------------------------------------------------------------------------------------------- leaving sick nodes


def sick_of_start(end_folder: Path, nodes: Iterable[str]) -> dict[str, dict[str, str]]:
    """The faults (text by key) of each node that is sick in a start. If no node could record that it is sick, the nodes without
    any record are."""
    found: dict[str, dict[str, str]] = {}
    known = set()
    for path in end_folder.glob("node-*.json"):
        with suppress(OSError, ValueError, TypeError, AttributeError):
            host = path.stem.removeprefix("node-")
            sick = json.loads(path.read_text()).get("sick", {})
            known.add(host)
            if sick:
                found[host] = {str(key): str(text) for key, text in sick.items()}
    silent = f"it cannot write into {end_folder}"
    return found or {host: {"no record": silent} for host in nodes if host not in known}


def read_sick_nodes(job: Path) -> dict[str, dict[str, str]]:
    """The nodes that a job has left, with their faults (text by key); {} if the file is missing or damaged."""
    with suppress(OSError, ValueError, TypeError, AttributeError):
        record = json.loads((job / SICK_NODES).read_text())
        return {str(host): {str(k): str(v) for k, v in faults.items()} for host, faults in record.items()}
    return {}


def sick_text(sick: Mapping[str, Mapping[str, str]]) -> str:
    """'node n2: /scratch is not writable (Read-only file system)'."""
    return "; ".join(f"node {host}: {', '.join(faults.values())}" for host, faults in sick.items())


def reason_to_stay(sick: Collection[str], left: Collection[str], usable: Collection[str], job_nodes: int) -> str | None:
    """Why a job cannot leave these nodes, or None. `left` are the nodes that it has left before, `usable` the nodes of its
    partition that are not down."""
    if again := sorted(set(sick) & set(left)):
        return f"Slurm started it on {', '.join(again)} again, although the job had left it"
    if len(set(sick) | set(left)) > MAX_SICK_NODES:
        return f"a job leaves at most {MAX_SICK_NODES} nodes, and it has left {', '.join(sorted(left)) or 'none'}"
    if len(set(usable) - set(sick) - set(left)) < job_nodes:
        return f"without it the partition has fewer than the {job_nodes} nodes that the job needs"
    return None


def leave(job: Path, sick: Mapping[str, Mapping[str, str]], nodes: JobNodes) -> str | None:
    """Record the nodes that the job leaves. Returns why it cannot leave them, or None."""
    left = read_sick_nodes(job)
    with suppress(SlurmError):
        if text := reason_to_stay(list(sick), list(left), slurm.usable_nodes(nodes.partition), nodes.count):
            return text
    with suppress(UserError):  # the disk is full
        write_json(job / SICK_NODES, {**left, **sick})
    return None
