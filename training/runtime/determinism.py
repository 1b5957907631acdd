"""--deterministic: torch uses only algorithms that give the same bits each time."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from data_preparation.common.errors import UserError

# cuBLAS reads the first when it starts, and is deterministic with these sizes of its workspace; torch.compile reads the second
_CUBLAS, _CUBLAS_SIZES = "CUBLAS_WORKSPACE_CONFIG", (":4096:8", ":16:8")
_INDUCTOR = "TORCHINDUCTOR_DETERMINISTIC"
_NO_ALGORITHM = re.compile(r"(\S+) does not have a deterministic implementation")


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Inside, torch computes deterministically if `wanted`. Attention then uses the deterministic backward pass of its kernels.

    Call it before CUDA starts.

    Raises:
        UserError: the model has an operation without a deterministic algorithm.
    """
    if not wanted:
        yield
        return
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    cudnn_before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    if os.environ.get(_CUBLAS) not in _CUBLAS_SIZES:
        os.environ[_CUBLAS] = _CUBLAS_SIZES[0]
    try:
        _set_inductor(True)
        torch.use_deterministic_algorithms(True)
        memory.fill_uninitialized_memory = False  # would only cost time
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        yield
    except RuntimeError as error:
        if text := fault_text(error):
            raise UserError(text) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = cudnn_before
        _set_inductor(False)


def _set_inductor(deterministic: bool) -> None:
    """Let torch.compile choose kernels without measuring them. Its settings take a second to import, so the environment is set
    if that has not happened yet."""
    if deterministic:
        os.environ[_INDUCTOR] = "1"
    else:
        os.environ.pop(_INDUCTOR, None)
    if (settings := sys.modules.get("torch._inductor.config")) is not None:
        settings.deterministic = deterministic  # type: ignore[attr-defined]


def fault_text(error: Exception) -> str | None:
    """The message about an operation without a deterministic algorithm, if `error` is torch's about one."""
    found = _NO_ALGORITHM.search(str(error))
    if found is None:
        return None
    return f"--deterministic True: torch {torch.__version__} has no deterministic algorithm for {found[1]} on this device: give --deterministic False, or choose another --model or --method"
