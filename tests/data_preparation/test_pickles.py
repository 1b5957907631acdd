"""Untrusted pickles: those of Python 2, harmless containers, and attacks."""

from __future__ import annotations

import datetime
import gzip
import pickle
import struct
import subprocess
import sys
from collections import Counter, OrderedDict, defaultdict
from decimal import Decimal
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pytest

from data_preparation.annotations import load_annotations
from data_preparation.common.errors import UserError
from data_preparation.pickles import load_pickle

OLD = b"\x80\x02}"  # the start of a dictionary in a pickle of Python 2


def old_text(raw: bytes) -> bytes:
    """Text in a pickle of Python 2, which is bytes."""
    return b"U" + bytes([len(raw)]) + raw


@pytest.mark.parametrize("numbers", ["ints", "numpy"])
def test_a_pickle_of_python_2_equals_the_csv(shared: Path, tmp_path: Path, numbers: str):
    rows = "".join(f"1,{n},{100 * n},{100 * n + 80},3.2,{60 + n / 4}\n" for n in range(1, 5))
    (tmp_path / "a.csv").write_text("video,dive,start_frame,end_frame,difficulty,final_score\n" + rows)
    script = shared / "cases" / "py2_pickle.py"
    subprocess.run([sys.executable, script, tmp_path / "a.csv", tmp_path / "a.pkl", numbers], check=True)
    assert load_annotations(tmp_path / "a.pkl") == load_annotations(tmp_path / "a.csv")


def test_text_of_python_2_is_utf_8_or_latin_1(tmp_path: Path):
    """Also next to numpy's raw numbers, which Python 2 pickled with the same opcode."""
    number = (
        b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n" + old_text(b"f8") + b"K\x00K\x01\x87R(K\x03" + old_text(b"<")
    )
    number += b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb" + old_text(struct.pack("<d", 0.93)) + b"\x86R"
    words = old_text("Süd".encode()) + old_text("Süd".encode("latin1")) + b"\x86"
    (tmp_path / "a.pkl").write_bytes(OLD + old_text(b"words") + words + b"s" + old_text(b"score") + number + b"s.")
    assert load_pickle(tmp_path / "a.pkl") == {"words": ("Süd", "Süd"), "score": 0.93}


@pytest.mark.parametrize("protocol", range(6))
def test_harmless_containers_load(tmp_path: Path, protocol: int):
    content = {
        "set": {1, 2}, "frozenset": frozenset([3]), "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "default": defaultdict(list, {"a": [1]}), "counter": Counter("aab"), "slice": slice(1, 2), "range": range(3),
        "bytes": b"\xff", "bytearray": bytearray(b"\xfe"), "path": PurePosixPath("a/b"), "windows": PureWindowsPath("a/b"),
        "day": datetime.date(2016, 8, 9), "moment": datetime.datetime(2016, 8, 9, 1, 2, tzinfo=datetime.timezone.utc),
        "time": datetime.time(1, 2), "span": datetime.timedelta(1), "decimal": Decimal("3.2"), "complex": 1j,
    }  # fmt: skip
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    found = load_pickle(tmp_path / "a.pkl")
    same = {name: found[name] == value for name, value in content.items()}
    assert [name for name, is_same in same.items() if not is_same] == ["path", "windows", "moment", "decimal"]
    assert (found["path"], found["windows"], found["decimal"]) == ("a/b", "a\\b", 3.2)
    assert found["moment"] == datetime.datetime(2016, 8, 9, 1, 2)
    assert type(found["ordered"]) is type(found["default"]) is type(found["counter"]) is dict


def called(function: bytes, arguments: bytes) -> bytes:
    return b"\x80\x02" + function + b"\n" + arguments + b"R."


FORGED = {
    "hidden in a container": called(b"ccollections\nOrderedDict", b"]cposix\nsystem\nX\x01\x00\x00\x00a\x85R\x86a\x85"),
    "of python 2": called(b"c__builtin__\neval", b"U\x011\x85"),
    "a default that is called": called(b"c__builtin__\nlist", b")"),
    "getattr": called(b"c__builtin__\ngetattr", b"c__builtin__\nset\nU\x03pop\x86"),
    "an endless range": called(b"c__builtin__\nxrange", b"K\x00\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x86"),
    "an endless set": called(b"c__builtin__\nset", b"c__builtin__\nxrange\nJ\x00\x09\x3d\x00\x85R\x85"),
    "huge memory": called(b"c__builtin__\nbytearray", b"\x8a\x06" + (10**12).to_bytes(6, "little") + b"\x85"),
    "a huge memo": b"\x80\x02]r\xff\xff\xff\x7f.",
    "a modified function": b"\x80\x02c_codecs\nencode\nN}X\x0c\x00\x00\x00__defaults__)s\x86b.",
    "a modified class": b"\x80\x02cnumpy\nndarray\nN}X\x08\x00\x00\x00__init__Ns\x86b.",
    "an unknown class": called(b"cargparse\nNamespace", b")"),
}  # fmt: skip


@pytest.mark.parametrize("name", FORGED)
def test_forged_pickles_are_refused(tmp_path: Path, name: str):
    (tmp_path / "evil.pkl").write_bytes(FORGED[name])
    with pytest.raises(UserError, match=r"evil\.pkl"):
        load_pickle(tmp_path / "evil.pkl")
    (tmp_path / "good.pkl").write_bytes(
        pickle.dumps({"a": b"b", "c": np.arange(3)}, 2)
    )  # the unpickler was not modified
    found = load_pickle(tmp_path / "good.pkl")
    assert (found["a"], found["c"].tolist()) == (b"b", [0, 1, 2])


def test_a_pickle_with_exponentially_many_references_is_refused(tmp_path: Path):
    many = b"".join(
        b"]q" + bytes([n]) + b"(" + b"h" + bytes([n - 1]) + b"h" + bytes([n - 1]) + b"e0" for n in range(1, 60)
    )
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02]q\x00U\x01\xfca0" + many + b"h\x3b.")
    with pytest.raises(UserError, match="expands to more than"):  # 2^59 references to one word
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("module", "advice"),
    [("pandas.core.frame\nDataFrame", r"to_csv\('dives\.csv'"), ("torch._utils\n_rebuild_tensor_v2", r"\.tolist\(\)"),
     ("mine\nDive", "write plain lists"), ("os\nsystem", "do not trust this file")],
)  # fmt: skip
def test_the_message_about_a_refused_name_has_the_fix(tmp_path: Path, module: str, advice: str):
    (tmp_path / "a.pkl").write_bytes(called(b"c" + module.encode(), b")"))
    with pytest.raises(
        UserError, match=rf"refused: the pickle wants to load '{module.split('.')[0].split(chr(10))[0]}.*{advice}"
    ):
        load_pickle(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "pointer of git-lfs.*git lfs pull"),
        (gzip.compress(pickle.dumps([1]), mtime=0), "compressed with gzip: unpack it: gunzip"),
        (b"PK\x03\x04" + bytes(40), "a ZIP archive: unpack it"),
        (b"<html>", "a web page"),
        (b"", r"empty \(0 bytes\)"),
        (b"video,dive\n1,2\n", r"it is text.*\.csv"),
        (b"\x93NUMPY\x01\x00", "a numpy array"),
        (pickle.dumps([1, "a" * 100])[:-60], "ValueError.*: download it again"),
    ],
)
def test_the_message_about_another_file_type_names_it(tmp_path: Path, content: bytes, message: str):
    (tmp_path / "d.pkl").write_bytes(content)
    with pytest.raises(UserError, match=rf"d\.pkl is not a readable pickle.*{message}"):
        load_pickle(tmp_path / "d.pkl")
