"""The checks of a node before it trains, and how a job leaves a sick node."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.common.errors import UserError
from launch import health, job
from launch.health import Fault, NodeCheck, RunningCheck, folder_faults, gpu_faults, reason_to_stay, sick_and_common
from launch.job import Outcome, outcome, without_sick_nodes
from launch.status import Cluster, run_row
from tests.small import config_of
from training.runtime.ranks import JobNodes
from training.runtime.run_folder import RunFolder
from training.runtime.statuses import Status

SCRATCH = Fault("scratch EROFS", "/scratch is not writable (Read-only file system)", False)
HANGS = Fault("/data no answer", "/data did not answer within 30 s", True)
MISSING = Fault("--root_dir ENOENT", "/data cannot be read (No such file or directory)", False)

NODES = JobNodes(2, "n[1-2]", "gpu", "n2")

GPU_FIELDS = ["index", "uuid", "ecc.errors.uncorrected.volatile.total", "retired_pages.pending"]
ROW_FIELDS = ["gpu_uuid", "remapped_rows.pending", "remapped_rows.failure"]


# ------------------------------------------------------------------------------------------------------------- checks


def test_a_check_that_hangs_does_not_hang_the_node(tmp_path: Path):
    pid_file = tmp_path / "pid"

    def hang() -> None:
        pid_file.write_text(str(os.getpid()))
        signal.pause()

    running = RunningCheck(hang)
    while not (pid_file.exists() and pid_file.read_text()):
        time.sleep(0.01)
    assert running.result(0) is None
    assert os.waitpid(int(pid_file.read_text()), 0)[1] == signal.SIGKILL
    assert RunningCheck(lambda: [Fault("a", "b", True)]).result(60) == [["a", "b", True]]
    assert RunningCheck(lambda: os._exit(1)).result(60) is None


def test_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert folder_faults("x", tmp_path, writes=True) == []
    assert list(tmp_path.iterdir()) == []
    (missing,) = folder_faults("x", tmp_path / "no", writes=False)
    assert missing == ("x ENOENT", f"{tmp_path / 'no'} cannot be read (No such file or directory)", False)

    def failing(number: int) -> None:
        def fail(**_: object) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(health.tempfile, "TemporaryFile", fail)

    failing(errno.ENOSPC)
    assert folder_faults("x", tmp_path, writes=True) == []  # all nodes share that disk
    assert folder_faults("TMPDIR", tmp_path, writes=True, shared=False) != []
    failing(errno.EROFS)
    assert folder_faults("x", tmp_path, writes=False) == []  # such as a data set
    (fault,) = folder_faults("x", tmp_path, writes=True)
    assert fault == ("x EROFS", f"{tmp_path} is not writable (Read-only file system)", True)
    assert not folder_faults("home", tmp_path, writes=True, needed=False)[0].certain  # some sites have a read-only home


def fake_nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, gpus: list[str], rows: list[str], status: int = 0):
    """Put an nvidia-smi on PATH that knows GPU_FIELDS and, if there are rows, ROW_FIELDS."""

    def described(fields: list[str]) -> str:
        return "\n".join(f'"{name}"\\nText.\\n' for name in fields)

    script = f"""#!/bin/bash
case "$*" in
    --help-query-gpu) printf '%b' '{described(GPU_FIELDS)}' ;;
    --help-query-remapped-rows) printf '%b' '{described(ROW_FIELDS)}'; exit {int(not rows)} ;;
    "--query-gpu={",".join(GPU_FIELDS)} --format=csv,noheader,nounits") printf '%s\\n' {" ".join(map(repr, gpus))}; exit {status} ;;
    "--query-remapped-rows={",".join(ROW_FIELDS)} --format=csv,noheader,nounits") printf '%s\\n' {" ".join(map(repr, rows))} ;;
    *) echo "unknown: $*"; exit 9 ;;
esac
"""
    (folder / "nvidia-smi").write_text(script)
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_gpus_with_memory_errors_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    gpus = ["0, GPU-a, 0, [N/A]", "1, GPU-b, 0, [N/A]", "2, GPU-c, 3, [N/A]", "3, GPU-d, [N/A], [N/A]"]
    rows = ["GPU-a, No, No", "GPU-b, Yes, No", "GPU-c, 0, 1", "GPU-d, [N/A], [N/A]"]
    fake_nvidia_smi(tmp_path, monkeypatch, gpus, rows)
    assert [fault.text for fault in gpu_faults("0,1,2,3")] == [
        "GPU 1 has memory rows to remap at its next reset",
        "GPU 2 has uncorrected memory errors since it was reset and memory rows that could not be remapped",
    ]
    assert gpu_faults("0,3") == []
    assert len(gpu_faults("7")) == 2  # other numbers than the node's: all GPUs that are shown
    assert all(fault.certain for fault in gpu_faults(None))


def test_older_gpus_retire_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake_nvidia_smi(tmp_path, monkeypatch, ["0, GPU-a, 0, Yes", "1, GPU-b, 0, No"], [])
    assert [fault.text for fault in gpu_faults("0,1")] == ["GPU 0 has memory pages to retire at its next reset"]


def test_a_lost_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lost = "Unable to determine the device handle for GPU0000:3B:00.0: Unknown Error"
    fake_nvidia_smi(tmp_path, monkeypatch, [lost], [], status=15)
    (fault,) = gpu_faults("0")
    assert fault.text == f"a GPU does not answer (nvidia-smi: {lost})"
    monkeypatch.setenv("PATH", "/nowhere")
    assert gpu_faults("0") == []  # nvidia-smi is not installed


# ------------------------------------------------------------------------------------------------------------ decision


def test_what_all_nodes_have_is_not_a_nodes_fault():
    assert sick_and_common([MISSING], [{MISSING.key}, {MISSING.key, "x"}], ()) == ([], [MISSING])
    assert sick_and_common([MISSING, SCRATCH], [{MISSING.key}, set()], ()) == ([MISSING, SCRATCH], [])
    assert sick_and_common([MISSING, SCRATCH], [{MISSING.key}], ()) == ([SCRATCH], [MISSING])


def test_a_single_node_is_compared_with_the_nodes_before():
    assert sick_and_common([MISSING, SCRATCH], [], ()) == ([], [])  # the training names what it needs
    assert sick_and_common([HANGS], [], ()) == ([HANGS], [])
    assert sick_and_common([HANGS], [], {HANGS.key}) == ([], [HANGS])
    assert sick_and_common([HANGS], [set()], {HANGS.key}) == ([HANGS], [])  # another node shows that it is not common


faults = st.lists(st.sampled_from([SCRATCH, HANGS, MISSING]), unique=True)


@given(st.lists(faults, min_size=2, max_size=5))
def test_the_nodes_agree(nodes: list[list[Fault]]):
    """Never are all nodes sick because of one fault, and a fault is common for all nodes or for none."""
    keys = [{fault.key for fault in own} for own in nodes]
    verdicts = [sick_and_common(own, keys[:i] + keys[i + 1 :], ()) for i, own in enumerate(nodes)]
    for fault in (SCRATCH, HANGS, MISSING):
        having = [verdict for own, verdict in zip(nodes, verdicts, strict=True) if fault in own]
        is_common = [fault in common for _, common in having]
        assert all(is_common) == (len(having) == len(nodes)) or not having
        assert len(set(is_common)) <= 1
        assert all((fault in sick) != (fault in common) for sick, common in having)


def test_a_sick_node_waits_for_the_others_and_records_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    ended = tmp_path / "ended-0"
    ended.mkdir()
    config = config_of()
    monkeypatch.setattr(health, "checks_of", lambda *_: {"scratch": lambda: [SCRATCH]})
    (ended / "node-n1.json").write_text(json.dumps({"faults": []}))
    assert NodeCheck(config, tmp_path, ended, NODES).result() == [SCRATCH.text]
    assert health.sick_of_start(ended, ["n1", "n2"]) == {"n2": {SCRATCH.key: SCRATCH.text}}
    # a fault of all nodes: the training goes on, and names what it needs
    (ended / "node-n1.json").write_text(json.dumps({"faults": [SCRATCH._asdict()]}))
    assert NodeCheck(config, tmp_path, ended, NODES).result() == []
    # unless it would hang there, too
    monkeypatch.setattr(health, "checks_of", lambda *_: {"/data": lambda: [HANGS]})
    (ended / "node-n1.json").write_text(json.dumps({"faults": [HANGS._asdict()]}))
    with pytest.raises(UserError, match="/data did not answer within 30 s, on every node of the job: choose another"):
        NodeCheck(config, tmp_path, ended, NODES).result()


# ------------------------------------------------------------------------------------------------- leaving sick nodes


def test_a_job_does_not_leave_all_nodes():
    usable = {"n1", "n2", "n3"}
    assert reason_to_stay(["n2"], [], usable, 2) is None
    assert "fewer than the 2 nodes" in reason_to_stay(["n2"], ["n3"], usable, 2)
    assert "again" in reason_to_stay(["n2"], ["n2"], usable, 1)
    many = [f"n{i}" for i in range(99)]
    assert "at most 4 nodes" in reason_to_stay(["n4"], many[:4], many, 1)


def test_a_start_with_a_sick_node_is_requeued_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "a" / "jobs" / "7"
    (ended := folder / "ended-0").mkdir(parents=True)
    record = {"faults": [SCRATCH._asdict()], "sick": {SCRATCH.key: SCRATCH.text}}
    (ended / "node-n2.json").write_text(json.dumps(record))
    (ended / "rank1.json").write_text(json.dumps({"status": Status.SICK_NODE}))
    found = outcome(137, job.recorded_statuses(ended), 2)
    assert found == Outcome(Status.SICK_NODE, Status.SICK_NODE.meaning, requeued=True)
    # another rank of that node cannot read its data, or gets an error of the disk
    for status in (Status.USER_ERROR, Status.BUG):
        assert outcome(71, [Status.SICK_NODE, status], 4) == found
    monkeypatch.setattr(health.slurm, "host_names", lambda _: ["n1", "n2"])
    monkeypatch.setattr(health.slurm, "usable_nodes", lambda _: {"n1", "n2", "n3"})
    env = {"SLURM_NNODES": "2", "SLURM_JOB_PARTITION": "gpu"}
    reason = "node n2: /scratch is not writable (Read-only file system)"
    assert without_sick_nodes(folder, ended, found, env) == Outcome(71, reason, requeued=True)
    pending = job_in_queue("PENDING")
    (tmp_path / "a" / "config.json").write_text("{}")
    error = run_row("a", RunFolder(tmp_path / "a"), Cluster(queued={"7": pending}), 1000.0)[1]
    assert error == f"the job has left {reason}"
    # Slurm started it there again: not requeued for ever
    assert not without_sick_nodes(folder, ended, found, env).requeued


def job_in_queue(state: str) -> health.slurm.QueuedJob:
    return health.slurm.QueuedJob("7", "a", state, "BeginTime", "0:00", "10:00", "")


def test_nodes_without_a_record_are_sick_if_no_other_is(tmp_path: Path):
    (tmp_path / "node-n1.json").write_text(json.dumps({"faults": []}))
    assert health.sick_of_start(tmp_path, ["n1", "n2"]) == {"n2": {"no record": f"it cannot write into {tmp_path}"}}
