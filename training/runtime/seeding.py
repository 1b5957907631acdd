"""Seeds derived from what a random number is for: (seed, purpose, epoch or step, action), and never from earlier random numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from the parts; changing any part gives an unrelated seed."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def generator(*parts: int | str) -> np.random.Generator:
    """A NumPy generator seeded by the parts."""
    return np.random.default_rng(derive_seed(*parts))


def seed_all(*parts: int | str) -> None:
    """Seed the global generators, which libraries use (dropout, stochastic depth, initial weights)."""
    seed = derive_seed(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code may use the legacy generator)
    torch.manual_seed(seed)


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread. Random weights need it: MKL's inverse error function (truncated normals) uses two threads, and
    in the first call of a process, one time in fifty, their code paths differ, and so do the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
