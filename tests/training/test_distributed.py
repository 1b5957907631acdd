"""Ranks read from the variables of torchrun and Slurm, lost ranks, and gathering with gradients."""

from __future__ import annotations

import os
import re
import signal
import socket
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given
from hypothesis import strategies as st

from data_preparation.common.errors import UserError
from tests.conftest import RANKS
from training.engine.step import Step
from training.losses import mse, soft_spearman
from training.runtime import collectives
from training.runtime.collectives import (
    barrier,
    choose_device,
    connect,
    describe_peer_failure,
    disconnect,
    exit_status,
    gather_objects,
    gather_rows,
    is_peer_failure,
    max_over_ranks,
    peer_failure_text,
    short_reason,
    wait_until_visible,
)
from training.runtime.interruption import time_limit_warning
from training.runtime.ranks import (
    Ranks,
    allocated_gpus,
    allocated_memory,
    first_host,
    job_times,
    ranks_on_node,
    read_ranks,
    rendezvous_port,
    slurm_job_id,
    tasks_of_nodes,
)
from training.runtime.statuses import Status

pytestmark = pytest.mark.usefixtures("rank_server")

STEP = {
    "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NODELIST": "gpu[003-004]", "SLURM_NTASKS": "4",
}  # fmt: skip
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "5"}


def test_torchrun_goes_before_slurm_before_a_single_process():
    assert read_ranks({}) == Ranks()
    assert read_ranks(STEP) == Ranks(3, 4, 1, "gpu003", rendezvous_port(1234, 0), "Slurm")
    assert read_ranks({**STEP, "DEEPSPORTS_PORT": "20123"}).port == 20123
    local = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_LOCALID": "1"}
    assert read_ranks({**local, "DEEPSPORTS_PORT": "7"}) == Ranks(1, 2, 1, "127.0.0.1", 7, "submitit")
    assert read_ranks({**STEP, **TORCHRUN}) == Ranks(1, 2, 1, "a", 5, "torchrun")


@pytest.mark.parametrize(
    ("env", "word"),
    [
        ({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "srun"),  # a batch script without srun
        ({**STEP, "SLURM_PROCID": "4"}, "rank 4 of 4"),
        ({**STEP, "SLURM_LOCALID": ""}, "SLURM_LOCALID"),
        ({k: v for k, v in STEP.items() if k != "SLURM_STEP_NUM_TASKS"}, "SLURM_STEP_NUM_TASKS"),
        ({**TORCHRUN, "RANK": "two"}, "RANK='two'"),
        ({k: v for k, v in TORCHRUN.items() if k != "MASTER_PORT"}, "MASTER_PORT"),
    ],
)
def test_odd_variables_are_an_error_and_never_a_guess(env: dict[str, str], word: str):
    with pytest.raises(UserError, match=word):
        read_ranks(env)


@pytest.mark.parametrize(
    ("nodelist", "host"),
    [
        ("n1", "n1"),
        ("n[1-2]", "n1"),
        ("gpu[003-010,012],cpu1", "gpu003"),
        ("a-01,b-02", "a-01"),
        ("r[7]i0n1", "r7i0n1"),
        ("rack[0-1]node[00-03],x", "rack0node00"),
    ],
)
def test_first_host(nodelist: str, host: str):
    assert first_host(nodelist) == host


@given(st.integers(1, 10**8), st.integers(0, 1000))
def test_ports_are_free_to_use(job: int, step: int):
    assert 1024 < rendezvous_port(job, step) < 32768


def _come(rank: int, world: int, port: int, answers: mp.SimpleQueue) -> None:
    ranks = Ranks(rank, world, rank, "127.0.0.1", port, "Slurm")
    try:
        connect(ranks, torch.device("cpu"), timedelta(seconds=4))
        found = gather_objects(rank)
        collectives._set_control_group(timedelta(seconds=4), main_backend="nccl")  # as beside nccl
        assert collectives._control is not None
        barrier()
        answers.put((rank, found if gather_objects(rank) == found and max_over_ranks(rank) == world - 1 else None))
        disconnect()
    except UserError as error:
        answers.put((rank, f"{type(error).__name__}: {error}"))


@pytest.mark.slow
@pytest.mark.parametrize("absent", [set(), {1, 3}, {0}])
def test_ranks_that_do_not_come_are_named(absent: set[int]):
    world, port = 4, 20000 + os.getpid() % 9000 + len(absent)
    answers = RANKS.SimpleQueue()
    here = [rank for rank in range(world) if rank not in absent]
    processes = [RANKS.Process(target=_come, args=(rank, world, port, answers)) for rank in here]
    for process in processes:
        process.start()
    said = dict(answers.get() for _ in processes)
    for process in processes:
        process.join()
    if not absent:
        assert said == {rank: [0, 1, 2, 3] for rank in range(4)}
    elif 0 in absent:
        assert all("ProcessLost" in said[rank] and "found no first rank at 127.0.0.1" in said[rank] for rank in here)
    else:
        assert "did not connect to 127.0.0.1" in said[0]
        assert ": 1, 3;" in said[0]
        assert "the log of rank 0 names them" in said[2]


def test_a_port_that_another_program_holds_is_named():
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        ranks = Ranks(0, 2, 0, "127.0.0.1", other.getsockname()[1], "Slurm")
        with pytest.raises(UserError, match="another program holds that port"):
            connect(ranks, torch.device("cpu"), timedelta(seconds=4))


def _lose(rank: int, world: int, port: int, lost: int, how: int, answers: mp.SimpleQueue) -> None:
    ranks = Ranks(rank, world, rank, "127.0.0.1", port, "Slurm")
    connect(ranks, torch.device("cpu"), timedelta(seconds=4))
    gather_objects(rank)
    if rank == lost:
        os.kill(os.getpid(), how)
    try:
        gather_objects(rank)
    except RuntimeError as error:

        def command(lost: RuntimeError = error) -> int:
            raise lost

        status = exit_status(command)
        answers.put((is_peer_failure(error), str(error), describe_peer_failure(error), status))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "lost", "how"), [(2, 1, signal.SIGKILL), (3, 0, signal.SIGKILL), (3, 1, signal.SIGSTOP)]
)
def test_a_lost_rank_is_named_in_plain_words(world: int, lost: int, how: int):
    """A rank is killed, or does not answer within the time that the others wait."""
    answers = RANKS.SimpleQueue()
    port = 20000 + os.getpid() % 9000 + 40 + world + lost
    processes = [RANKS.Process(target=_lose, args=(r, world, port, lost, how, answers)) for r in range(world)]
    for process in processes:
        process.start()
    said = [answers.get() for _ in range(world - 1)]
    for process in processes:
        process.kill()
        process.join()
    for about_peers, raw, text, status in said:
        assert status == Status.RANK_LOST  # of training.train, training.evaluate and training.extract_features
        assert about_peers
        assert ".cc:" in raw  # what gloo says has its source path
        assert f"no answer from rank {lost} on {socket.gethostname()})" in text
        assert "killed" in text
        assert "dmesg" in text
        assert ".cc" not in text
        assert text.isascii()
        assert "\n" not in text


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        (
            "[/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:29892. This is typically caused by a remote worker crashing. Check the logs of the remote worker before reporting an error. GLHF! \U0001f3d6\ufe0f",
            "Connection closed by peer [10.0.0.2]:29892",
        ),
        (
            "[/__w/pytorch/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete",
            "Timed out waiting 3000ms for recv operation to complete",
        ),
        (
            "NCCL error in: /pytorch/torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:3384, remote process exited or there was a network error, NCCL version 2.21.5\nncclRemoteError: A call failed",
            "NCCL error, remote process exited or there was a network error, NCCL version 2.21.5",
        ),
        ("the disk is full: make room", "the disk is full: make room"),
        ("", "RuntimeError"),
    ],
)
def test_libraries_say_their_reason_without_their_source(said: str, plain: str):
    assert short_reason(RuntimeError(said)) == plain


def test_where_to_look_for_what_killed_a_rank():
    text = peer_failure_text("Connection closed by peer", "rank 0 on a", ["rank 3 on b"], "12_1")
    assert "sacct -j 12_1" in text
    assert "OUT_OF_MEMORY" in text
    assert "sacct" not in peer_failure_text("Connection closed by peer", "rank 0 on a", [], None)


@pytest.mark.parametrize(("text", "counts"), [("2(x3),1", [2, 2, 2, 1]), ("4", [4]), ("1,2(x2)", [1, 2, 2]), ("", [])])
def test_tasks_of_nodes(text: str, counts: list[int]):
    assert tasks_of_nodes(text) == counts


def test_ranks_and_memory_of_this_node():
    step = {"SLURM_STEP_TASKS_PER_NODE": "2(x2),1", "SLURM_NODEID": "2"}
    assert ranks_on_node(Ranks(4, 5, 0, "a", 1, "Slurm"), step) == 1
    assert ranks_on_node(Ranks(1, 5, 1, "a", 1, "Slurm"), {**step, "SLURM_NODEID": "0"}) == 2
    assert ranks_on_node(Ranks(1, 4, 1, "a", 5, "torchrun"), {"LOCAL_WORLD_SIZE": "2"}) == 2
    assert ranks_on_node(Ranks(1, 2, 1, "a", 5, "submitit"), {}) == 2
    assert ranks_on_node(Ranks(), {}) == 1
    assert allocated_memory({}) is None
    assert allocated_memory({"SLURM_MEM_PER_NODE": "2048"}) == 2**31
    assert allocated_memory({"SLURM_MEM_PER_NODE": "0"}) is None
    assert allocated_memory({"SLURM_MEM_PER_CPU": "512", "SLURM_CPUS_ON_NODE": "4"}) == 2**31


def test_a_time_limit_that_leaves_little_to_train():
    assert time_limit_warning(0, 30, 7200) is None
    assert "0.2 are left" in time_limit_warning(0, 20, 60)  # a minute: 30 s of it are for saving
    assert "0.0 are left" in time_limit_warning(0, 200, 300)
    assert time_limit_warning(0, 300, 700)  # 280 s are left, less than each start takes
    assert time_limit_warning(0, 300, 800) is None
    assert job_times({}) is None
    assert job_times({"SLURM_JOB_START_TIME": "5", "SLURM_JOB_END_TIME": "65"}) == (5, 65)


def _see(rank: int, port: int, path: Path, late: float, answers: mp.SimpleQueue) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    shown_at = time.monotonic() + (late if rank == 1 else 0)

    def mark(file: Path) -> str:
        if time.monotonic() < shown_at:
            raise FileNotFoundError(file)  # as on a shared file system that shows an older state
        return file.read_text()

    try:
        answers.put(wait_until_visible(path, mark, patience_s=4))
    except UserError as error:
        answers.put(str(error))
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("late", [0.0, 1.5, 30.0])
def test_ranks_wait_until_they_see_the_first_ranks_file(tmp_path: Path, late: float):
    (tmp_path / "c.pt").write_text("content")
    answers = RANKS.SimpleQueue()
    port = 20000 + os.getpid() % 9000 + int(late)
    processes = [RANKS.Process(target=_see, args=(r, port, tmp_path / "c.pt", late, answers)) for r in range(2)]
    for process in processes:
        process.start()
    said = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    if late < 4:
        assert said == [tmp_path / "c.pt"] * 2
    else:
        assert all("ranks 1 do not see" in each for each in said)


def test_what_slurm_says_of_the_job():
    assert slurm_job_id({}) is None
    assert slurm_job_id({"SLURM_JOB_ID": "9"}) == "9"
    assert slurm_job_id({"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "8", "SLURM_ARRAY_TASK_ID": "3"}) == "8_3"
    assert allocated_gpus({"CUDA_VISIBLE_DEVICES": "0"}) is None  # not in a job: the user's own choice
    assert allocated_gpus({"SLURM_JOB_ID": "9", "CUDA_VISIBLE_DEVICES": "0"}) == "0"
    assert allocated_gpus({"SLURM_JOB_ID": "9"}) is None
    assert allocated_gpus({"SLURM_JOB_ID": "9", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}) is None


@pytest.mark.parametrize(
    ("built_for", "driver", "sentence"),
    [
        (None, None, "is a build without CUDA: set DEEPSPORTS_TORCH_INDEX in job_files/environment.sh"),
        ("13.0", 12040, "supports CUDA 12.4, torch 2.13.0 is built for CUDA 13.0: set DEEPSPORTS_TORCH_INDEX in"),
        ("12.6", 12060, "CUDA sees none: fix the node's driver, or train on the CPU with --gpu False"),
        ("12.6", 0, "CUDA sees none: fix the node's driver, or"),
    ],
)
def test_an_allocated_gpu_that_cuda_does_not_see_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, built_for: str | None, driver: int | None, sentence: str
):
    monkeypatch.setenv("SLURM_JOB_ID", "9")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch._C, "_cuda_getDriverVersion", lambda: driver, raising=False)
    with pytest.raises(UserError, match=re.escape(sentence)):
        choose_device(True, Ranks())


def _loss(predicted: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return mse(predicted, y) - 0.7 * soft_spearman(predicted, y, 2.0)


def _rank(rank: int, world: int, file: str, x: torch.Tensor, y: torch.Tensor, expected: torch.Tensor) -> None:
    """A step as training/engine/step.py makes it: every rank computes the whole loss, and takes the gradient of its own rows."""
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    share = len(x) // world
    rows = slice(rank * share, (rank + 1) * share)
    predicted = x[rows] @ weight
    odd = {"number": torch.arange(rank * share, (rank + 1) * share, dtype=torch.int16), "flag": y[rows, None, None] > 0}
    outputs, labels = gather_rows({"predicted": predicted.detach()}, {"y": y[rows], **odd})
    assert torch.equal(labels["number"], torch.arange(len(x), dtype=torch.int16))
    assert torch.equal(labels["flag"], y[:, None, None] > 0)
    _loss(outputs["predicted"].requires_grad_(), labels["y"]).backward()
    predicted.backward(outputs["predicted"].grad[rows])
    dist.all_reduce(weight.grad)
    assert torch.allclose(weight.grad, expected, rtol=1e-5, atol=1e-6)
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_together_have_the_gradient_of_the_whole_batch(tmp_path, world: int):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(8, 3, generator=generator), torch.randn(8, generator=generator)
    weight = torch.tensor([1.0, -2.0, 0.5], requires_grad=True)
    _loss(x @ weight, y).backward()
    assert weight.grad.abs().min() > 1e-3
    mp.start_processes(
        _rank, (world, str(tmp_path / "join"), x, y, weight.grad), nprocs=world, start_method="forkserver"
    )


def _wrap(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    model = torch.nn.Linear(2, 1)
    model.register_buffer("drawn", torch.full((2,), float(rank)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as a deprecated argument
        ddp_model = Step._wrap(SimpleNamespace(ranks=Ranks(rank, 2), device=torch.device("cpu")), model)
    assert model.drawn.tolist() == [0, 0]
    model.drawn.fill_(rank)
    ddp_model(torch.ones(1, 2)).sum().backward()
    assert model.drawn.tolist() == [rank, rank]
    del ddp_model
    collectives.disconnect()


@pytest.mark.slow
def test_buffers_are_broadcast_once_before_the_first_step(tmp_path):
    mp.start_processes(_wrap, (str(tmp_path / "join"),), nprocs=2, start_method="forkserver")
