"""File types are detected from the first bytes, and readers that fail name the type."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from data_preparation.annotations import load_annotations, load_split, load_vocabulary
from data_preparation.archive import FrameReader
from data_preparation.common.errors import UserError
from data_preparation.file_types import HEAD_BYTES, file_type_of
from data_preparation.frame_numbers import open_video
from training.runtime import checkpoint

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"


def written_by(write: Callable[[io.BytesIO], object]) -> bytes:
    buffer = io.BytesIO()
    write(buffer)
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    return written_by(lambda b: zipfile.ZipFile(b, "w").writestr(name, b"content" * 100))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"", "empty"),
        (bytes(1000), "zeros"),
        (POINTER, "git-lfs"),
        (b"/annex/objects/MD5E-s1--a.mp4\n", "git-annex"),
        (b"../.git/annex/objects/x/y", "git-annex"),
        (b"outs:\n- md5: abc", "dvc"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (bz2.compress(b"x"), "bzip2"),
        (lzma.compress(b"x"), "xz"),
        (zipped("[Content_Types].xml"), "workbook"),
        (zipped("000001.jpg"), "frames"),
        (zipped("a.npy"), "npz"),
        (zipped("a.mp4"), "zip"),
        (written_by(lambda b: np.save(b, np.zeros(2))), "npy"),
        (written_by(lambda b: torch.save({}, b)), "torch"),
        (written_by(lambda b: torch.save({}, b, _use_new_zipfile_serialization=False)), "pickle"),
        (pickle.dumps([1]), "pickle"),
        (b"\xef\xbb\xbfvideo,dive\n", "text"),
        ("vidéo;dive\n".encode("latin1"), "text"),
        ("video,dive".encode("utf-16"), "utf-16"),
        (b' [{"video": 1}]', "json"),
        (b"\n<!DOCTYPE HTML>", "html"),
        (b"<?xml version='1.0'?><Error>", "xml"),
        (b"\0\0\0\x18ftypmp42", "video"),
        (b"\x13\x57\x9b\xdf" * 9, None),
    ],
)
def test_types_are_detected(content: bytes, kind: str | None):
    found = file_type_of(content[:HEAD_BYTES])
    assert (found and found.kind) == kind


READERS = {
    "a.csv": load_annotations,
    "a.json": load_annotations,
    "a.pkl": load_annotations,
    "l.csv": load_split,
    "l.pkl": load_split,
    "vocab.json": load_vocabulary,
    "01.zip": FrameReader,
    "01.mp4": open_video,
    "last.pt": checkpoint.load,
}


@pytest.mark.parametrize("name", READERS)
def test_every_reader_names_the_type_of_a_wrong_file(tmp_path: Path, name: str):
    path = tmp_path / name
    for content, words in ((POINTER, "pointer of git-lfs"), (gzip.compress(bytes(9000)), "compressed with gzip")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=words) as error:
            READERS[name](path)
        assert str(path) in str(error.value)
        assert "\n" not in str(error.value)
        assert "download it again" not in str(error.value)


def test_the_fix_fits_the_fault(tmp_path: Path):
    (tmp_path / "01.zip").write_bytes(bytes(5000))
    with pytest.raises(UserError, match=r"nothing but zero bytes.*: delete it and extract the video again"):
        FrameReader(tmp_path / "01.zip")
    (tmp_path / "01.zip").write_bytes(zipped("000001.jpg")[:200])
    with pytest.raises(UserError, match=r"is not a readable frame archive .*: delete it and extract the video again"):
        FrameReader(tmp_path / "01.zip")
    (tmp_path / "a.csv").write_bytes("video,dive".encode("utf-16"))
    with pytest.raises(UserError, match="has no dives"):  # it is read, like Excel's "Unicode text"
        load_annotations(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_bytes(zipped("[Content_Types].xml"))
    with pytest.raises(UserError, match="a workbook of a spreadsheet program: open it there and save it as CSV"):
        load_annotations(tmp_path / "a.csv")
    (tmp_path / "a.pkl").write_text(json.dumps([{"video": 1}]))
    with pytest.raises(UserError, match=r"it is JSON text: rename it to \.json"):
        load_annotations(tmp_path / "a.pkl")
