"""The index of an archive as arrays: the same as zipfile's, or none."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from data_preparation.archive import FrameReader, write_archive
from data_preparation.common.errors import UserError
from data_preparation.frame_index import FrameIndex, read_index
from data_preparation.layout import frame_name

FRAMES = {number: bytes([number % 256]) * (number % 50) for number in (3, 1, 2, 700, 41)}


def index_of(path: Path) -> FrameIndex | None:
    with open(path, "rb") as file:
        return read_index(file.fileno())


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "01.zip"
    write_archive(path, iter(FRAMES.items()), {"a": 1})
    return path


def test_it_is_that_of_zipfile(archive: Path):
    index = index_of(archive)
    assert index is not None
    assert index.numbers.tolist() == sorted(FRAMES)
    infos = [zipfile.ZipFile(archive).getinfo(frame_name(number)) for number in sorted(FRAMES)]
    for column, name in ((index.offsets, "header_offset"), (index.sizes, "file_size"), (index.checksums, "CRC")):
        assert column.tolist() == [getattr(info, name) for info in infos]
    reader = FrameReader(archive)
    assert {number: reader.read(number) for number in FRAMES} == FRAMES
    with pytest.raises(UserError, match="no frame 4"):
        reader.read(4)


@pytest.mark.parametrize("how", ["compressed", "other name", "from zero", "twice", "comment", "no provenance"])
def test_zipfile_reads_every_other_archive(tmp_path: Path, how: str):
    path = tmp_path / "01.zip"
    method = zipfile.ZIP_DEFLATED if how == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as written:
        for number in range(how != "from zero", 5):
            written.writestr(frame_name(number), b"x" * 100)
        if how == "other name":
            written.writestr("00001.jpeg", b"")
        if how == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                written.writestr(frame_name(1), b"")
        if how == "comment":
            written.comment = b"c"
        if how != "no provenance":
            written.writestr("provenance.json", b"{}")
    assert index_of(path) is None


def test_damage_anywhere_is_found_by_the_checksum_or_left_to_zipfile(archive: Path):
    content = archive.read_bytes()
    for place in range(0, len(content), 3):
        archive.write_bytes(content[:place] + bytes([content[place] ^ 255]) + content[place + 1 :])
        try:
            reader = FrameReader(archive)
            found = {int(number): reader.read(int(number)) for number in reader.numbers}
        except UserError:
            continue
        assert all(FRAMES.get(number, content) == content for number, content in found.items()), place
    for length in range(0, len(content), 7):
        archive.write_bytes(content[:length])
        with pytest.raises(UserError):
            FrameReader(archive).read(1)


def test_frames_read_one_after_the_other_are_those_read_alone(tmp_path: Path):
    rng, path = np.random.default_rng(0), tmp_path / "01.zip"
    pictures = [rng.integers(0, 256, (8 + 8 * (n % 3), 16, 3)).astype(np.uint8) for n in range(6)]  # of several sizes
    write_archive(path, enumerate(map(simplejpeg.encode_jpeg, pictures), 1), {})
    numbers = [2, 1, 6, 6, 3, 5]
    for least in (None, (4, 8)):
        alone = [FrameReader(path).image(number, least) for number in numbers]
        assert all(map(np.array_equal, FrameReader(path).images(numbers, least), alone))
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        content[archive.getinfo(frame_name(6)).header_offset + 60] ^= 1
    path.write_bytes(content)
    read = FrameReader(path).images(numbers)
    assert np.array_equal([next(read) for _ in range(2)][1], FrameReader(path).image(1))
    with pytest.raises(UserError, match="frame 6 is damaged"):
        next(read)
    with pytest.raises(UserError, match="no frame 7"):
        list(FrameReader(path).images([1, 7]))


def test_a_closed_reader_opens_a_new_archive(archive: Path):
    reader = FrameReader(archive)
    reader.close()
    write_archive(archive, iter([(1, b"new")]), {})
    assert reader.read(1) == b"new"
    assert np.array_equal(FrameReader(archive).numbers, [1])
