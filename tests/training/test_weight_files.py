"""Weight files as users have them: read without running code from them, or refused with a sentence that says what they are."""

from __future__ import annotations

import argparse
import collections
import enum
import functools
import gzip
import io
import os
import pickle
import shlex
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from data_preparation.common.errors import UserError
from tests.conftest import REPOSITORY
from training.backbones._weights import read_state_dict

STATE = {"norm.weight": torch.arange(4.0), "norm.bias": torch.ones(2, dtype=torch.float16)}


class EasyDict(dict):
    def __init__(self, **entries: Any) -> None:
        super().__init__(entries)
        self.__dict__ = self


class MyList(list): ...


class Meter:
    def __init__(self) -> None:
        self.history = [np.float32(1)]


class Colour(enum.Enum):
    RED = 1


def is_the_state(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == STATE.keys() and all(torch.equal(found[name], STATE[name]) for name in STATE)


def nothing_stays_allowed() -> bool:
    return not any("_standins" in str(allowed) for allowed in torch.serialization.get_safe_globals())


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


BESIDE = {
    "flags": argparse.Namespace(lr=1e-4, nested=argparse.Namespace(a=1)),
    "numpy scalars": [np.float64(0.93), np.int64(3), np.float32(1)],
    "numpy arrays": np.zeros(3),
    "defaultdict": collections.defaultdict(list, {"a": [1]}),
    "counter": collections.Counter("aab"),
    "easydict": EasyDict(a=1, b=EasyDict(c=2)),
    "list subclass": MyList([1, 2]),
    "own class": Meter(),
    "enum": Colour.RED,
    "function": torch.nn.functional.relu,
    "partial": functools.partial(print, 1),
    "path": Path("/x"),
    "set, bytes, range": [{1}, frozenset([2]), b"x", bytearray(b"y"), range(3), slice(1), 1j],
    "random state": [np.random.RandomState(0), torch.get_rng_state()],
    "optimizer": torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))]).state_dict(),
}


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("beside", BESIDE)
def test_other_content_of_a_weight_file_is_ignored(tmp_path: Path, beside: str, as_zip: bool):
    content = {"epoch": 3, "state_dict": prefixed("module."), "beside": BESIDE[beside]}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=as_zip)
    assert is_the_state(read_state_dict(tmp_path / "w.pth"))
    assert nothing_stays_allowed()


@pytest.mark.parametrize(
    "content",
    [
        {"base_model": prefixed("module."), "regressor": {"w": torch.zeros(1)}, "rho_best": np.float64(0.9)},  # CoRe
        {"model_state": prefixed("model."), "cfg": "text"},  # SlowFast
        {"model_state_dict": prefixed("module._orig_mod.")},  # torch.compile inside DistributedDataParallel
        {"state_dict": prefixed("_orig_mod.module.")},
        {"state_dict": {"model": STATE}},
        {"weights of the student": STATE, "epoch": 1},  # the only entry with named tensors
        collections.defaultdict(float, STATE),
        {"model": EasyDict(**STATE)},
    ],
)
def test_the_state_dict_is_found(tmp_path: Path, content: Any):
    torch.save(content, tmp_path / "w.pth")
    assert is_the_state(read_state_dict(tmp_path / "w.pth"))


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_of_arrays_is_read(tmp_path: Path, protocol: int):
    arrays = {name: tensor.numpy() for name, tensor in STATE.items()}
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"blobs": {**arrays}, "epoch": np.int64(3)}, protocol))
    assert is_the_state(read_state_dict(tmp_path / "w.pkl"))


# ------------------------------------------------------------------------------------------------------------ attacks


def torch_file(path: Path, program: bytes, as_zip: bool) -> Path:
    """A file of torch.save whose object is built by a pickle program of ours."""
    if not as_zip:
        head = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
        path.write_bytes(head + program + pickle.dumps([], 2))
        return path
    torch.save({}, path)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, record in records.items():
            archive.writestr(name, program if name.endswith("data.pkl") else record)
    return path


def called(function: bytes, arguments: bytes) -> bytes:
    return b"\x80\x02" + function + arguments + b"R."


def text(words: str) -> bytes:
    return b"X" + struct.pack("<I", len(words)) + words.encode()


ATTACKS = {
    "os.system": called(b"cos\nsystem\n", text("touch pwned") + b"\x85"),
    "posix.system": called(b"cposix\nsystem\n", text("touch pwned") + b"\x85"),
    "subprocess": called(b"csubprocess\nPopen\n", text("touch pwned") + b"\x85"),
    "eval": called(b"c__builtin__\neval\n", text("open('pwned', 'w')") + b"\x85"),
    "exec": called(b"cbuiltins\nexec\n", text("open('pwned', 'w')") + b"\x85"),
    "hub": called(b"ctorch.hub\nload\n", text("a/b") + text("c") + b"\x86"),
    "torch.load": called(b"ctorch.serialization\nload\n", text("inner.pth") + b"\x85"),
    "module": called(b"cpwning\nanything\n", b")"),  # a module whose import leaves a trace
    "new object": b"\x80\x02cpwning\nanything\n)\x81}" + text("x") + b"K\x01sb.",
    "getattr": b"\x80\x02c__builtin__\ngetattr\ncpwning\nanything\n" + text("call") + b"\x86R" + text("x") + b"\x85R.",
    "set on a class": b"\x80\x02cargparse\nNamespace\nN}" + text("__init__") + b"K\x01s\x86b.",
    "rebuilt by a stand-in": called(b"ctorch._tensor\n_rebuild_from_type_v2\n", b"(cpwning\nanything\ncpwning\nanything\n)Nt"),
    "nested": b"\x80\x02}" + text("state_dict") + b"}" + text("w") + called(b"cos\nsystem\n", text("touch pwned") + b"\x85")[2:-1] + b"ss.",
    "memory": called(b"c__builtin__\nbytearray\n", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"),
    "memory by way of the memo": b"\x80\x02\x8a\x06" + (10**12).to_bytes(6, "little") + b"q\x000c__builtin__\nbytearray\nh\x00\x85R.",
    "itself": b"\x80\x02}q\x00" + text("model") + b"h\x00s.",
}  # fmt: skip


@pytest.mark.parametrize("as_zip", [True, False])
@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, attack: str, as_zip: bool):
    (tmp_path / "pwning.py").write_text("open('pwned', 'w').close()\ndef anything(*_): ...\nanything.call = anything\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"weight file .*w\.pth"):
        read_state_dict(torch_file(tmp_path / "w.pth", ATTACKS[attack], as_zip))
    assert not Path("pwned").exists()
    assert "pwning" not in sys.modules
    assert nothing_stays_allowed()
    (tmp_path / "w.pkl").write_bytes(ATTACKS[attack])
    with pytest.raises(UserError, match=r"weight file .*w\.pkl"):
        read_state_dict(tmp_path / "w.pkl")
    assert not Path("pwned").exists()


def test_weights_beside_a_harmless_call_are_read_and_the_call_is_not_made(tmp_path: Path, monkeypatch):
    """What is foreign is dropped: this is why the file can be read."""
    (tmp_path / "pwning.py").write_text("open('pwned', 'w').close()\nclass Flags: ...\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    program = (
        b"\x80\x02}(" + text("state_dict") + b"}" + text("args") + b"cpwning\nFlags\n)\x81}" + text("a") + b"K\x01sbu."
    )
    with pytest.raises(UserError, match=r"holds no named tensors \(its entries are state_dict, args\)"):
        read_state_dict(torch_file(tmp_path / "w.pth", program, True))
    assert not Path("pwned").exists()


def test_a_decompression_bomb_is_refused(tmp_path: Path):
    path = torch_file(tmp_path / "w.pth", b"\x80\x02}.", True)
    with zipfile.ZipFile(path) as archive:
        records = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, record in records.items():
            archive.writestr(name, b"\x80\x02" + b"0" * 50_000_000 if name.endswith("data.pkl") else record)
    with pytest.raises(UserError, match="its content is compressed, which"):
        read_state_dict(path)


# ---------------------------------------------------------------------------------------- what the message says, and why


def packed(pack: Callable[[io.BytesIO], None]) -> bytes:
    buffer = io.BytesIO()
    pack(buffer)
    return buffer.getvalue()


def zipped(buffer: io.BytesIO) -> None:
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("w.pth", packed(lambda b: torch.save(STATE, b)))


def tarred(buffer: io.BytesIO) -> None:
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("w.pth"))


SAVED = packed(lambda b: torch.save(STATE, b))
FILES = {
    "lfs.pth": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1\n", "pointer of git-lfs.*git lfs pull"),
    "annex.pth": (b"/annex/objects/SHA256E-s1--ab.pth\n", "pointer of git-annex.*git annex get"),
    "gz.pth": (gzip.compress(SAVED), r"compressed with gzip: unpack it: gunzip < '.*gz\.pth'"),
    "zip.pth": (packed(zipped), "a ZIP archive: unpack it: unzip"),
    "tar.pth": (packed(tarred), "a tar archive: unpack it: tar -xf"),
    "page.pth": (b"\n<!DOCTYPE html><html>", "a web page .*log-in"),
    "quota.pth": (b"quota exceeded", "it is text: read it"),
    "empty.pth": (b"", r"empty \(0 bytes\): download it again"),
    "zeros.pth": (bytes(5000), "nothing but zero bytes.*: download it again"),
    "cut.pth": (SAVED[: len(SAVED) // 2], "is damaged .*: download it again"),
    "old_cut.pth": (packed(lambda b: torch.save(STATE, b, _use_new_zipfile_serialization=False))[:-20], "is damaged .*: download it again"),
    "st.pth": (safetensors.torch.save(STATE), r"is a safetensors file: rename it to st\.safetensors"),
    "torch.safetensors": (SAVED, r"was written by torch\.save: rename it to torch\.pth"),
    "lfs.safetensors": (b"version https://git-lfs.github.com/spec/v1\n", "pointer of git-lfs"),
    "hdf.pth": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
    "other.pth": (packed(lambda b: torch.save({"epoch": 3}, b)), r"holds no named tensors \(its entries are epoch\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_the_message_says_what_the_file_is(tmp_path: Path, name: str):
    content, message = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        read_state_dict(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    assert "\n" not in str(error.value)


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(2)


def convertible(folder: Path, name: str) -> Path:
    path = folder / name
    if name == "npz.pth":
        np.savez(folder / "w.npz", **{n: t.numpy() for n, t in STATE.items()})
        os.replace(folder / "w.npz", path)
    elif name == "script.pt":
        torch.jit.save(torch.jit.trace(torch.nn.LayerNorm(2), torch.zeros(1, 2)), path)
    elif name == "protocol.pth":
        torch.save(STATE, path, pickle_protocol=4)
    elif name == "tensors.pth":
        path.write_bytes(pickle.dumps(STATE))
    elif name == "two.pth":
        torch.save({"student": STATE, "teacher": STATE}, path)
    else:
        torch.save(Net() if name == "model.pth" else {"net": Net(), "epoch": 3}, path)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["npz.pth", "script.pt", "protocol.pth", "tensors.pth", "two.pth", "model.pth", "in_dict.pth"]
)
def test_the_command_that_the_message_gives_makes_a_file_that_is_read(tmp_path: Path, name: str):
    with pytest.raises(UserError, match=r"python -c \"import .*\"$") as error:
        read_state_dict(convertible(tmp_path, name))
    command = shlex.split(str(error.value).partition("python -c ")[2])
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run([sys.executable, "-c", *command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": path})
    assert done.returncode == 0
    assert len(read_state_dict(tmp_path / f"{Path(name).stem}.weights.pth")) == 2
