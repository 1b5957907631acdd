"""Random draws as pure functions of what they are for: (seed, purpose, epoch or step, dive), never of what came before."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts; any change of any part gives an unrelated one."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A numpy generator for the draws named by the parts."""
    return np.random.default_rng(derive_seed(*parts))


def seed_all(*parts: int | str) -> None:
    """Seed the global generators that library code draws from (dropout, stochastic depth, initial weights)."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code may use the legacy generator)
    torch.manual_seed(seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread. Drawing weights needs it: MKL's inverse error function (truncated normals) takes two threads,
    and in the first call of a process, one time in fifty, they do not take the same code path; the last digits differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
