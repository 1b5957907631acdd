"""Detect the type of a file from its first bytes, and messages for files of a wrong type (imports only common.errors).

The suffix of a file decides which reader opens it. If that reader fails, the type explains why, and how to fix it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from data_preparation.common.errors import UserError

# box types at the start of MP4 and QuickTime files
VIDEO_BOXES = (
    b"ftyp",
    b"moov",
    b"mdat",
    b"free",
    b"skip",
    b"wide",
    b"pnot",
)
# pointers to other files, and compressed files: never what a reader of the project wants
POINTERS_AND_COMPRESSED = {"git-lfs", "git-annex", "dvc", "gzip", "bzip2", "xz", "zstd", "lz4", "7z", "rar"}
HEAD_BYTES = 512  # the magic of a tar archive is at byte 257


@dataclass(frozen=True)
class FileType:
    """A file type: `name` for messages, and `fix`, the advice if another type is wanted ("{}" is replaced by the path)."""

    kind: str
    name: str
    fix: str


_DOWNLOAD_AGAIN = "download it again"
_OTHER_FILE = "give another file"


def _starts(*magics: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.startswith(magics)


def _text_starts(*words: bytes) -> Callable[[bytes], bool]:
    return lambda head: head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(words)


def _is_git_annex(head: bytes) -> bool:
    first = head.split(b"\n", 1)[0]
    return first.startswith((b"/annex/objects/", b"../.git/annex", b".git/annex")) or b"/.git/annex/objects/" in first


def _is_zip_with(pattern: bytes) -> Callable[[bytes], bool]:
    """Whether the name of a ZIP's first entry matches a pattern."""

    def fits(head: bytes) -> bool:
        name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return head.startswith(b"PK\x03\x04") and re.match(pattern, name) is not None

    return fits


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32


def _is_text(head: bytes) -> bool:
    return not re.search(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]", head) and bool(head.strip())


# the first type whose test succeeds is returned
_TYPES: tuple[tuple[FileType, Callable[[bytes], bool]], ...] = (
    (FileType("empty", "empty (0 bytes)", _DOWNLOAD_AGAIN), lambda head: not head),
    (FileType("zeros", "nothing but zero bytes, as an interrupted copy leaves it", _DOWNLOAD_AGAIN), lambda head: not head.strip(b"\0")),
    (
        FileType(
            "git-lfs",
            "a pointer of git-lfs, not the file itself",
            "run 'git lfs pull' in its repository, or download the file itself",
        ),
        _starts(b"version https://git-lfs", b"version https://hawser"),
    ),
    (
        FileType(
            "git-annex",
            "a pointer of git-annex, not the file itself",
            "run 'git annex get' for it in its repository, or download the file itself",
        ),
        _is_git_annex,
    ),
    (
        FileType("dvc", "a pointer of DVC, not the file itself", "run 'dvc pull' in its repository"),
        _starts(b"outs:\n- md5:", b"outs:\n- hash:"),
    ),
    (
        FileType(
            "html",
            "a web page instead of the file",
            "the link has expired, or needs a log-in or a confirmation: download the file in a browser",
        ),
        _text_starts(b"<!doctype html", b"<html", b"<head"),
    ),
    (
        FileType("xml", "an XML message of a server instead of the file", "read the message, then download the file again"),
        _text_starts(b"<?xml", b"<error"),
    ),
    (FileType("gzip", "compressed with gzip", "unpack it: gunzip < '{}' > NEW_FILE"), _starts(b"\x1f\x8b")),
    (FileType("bzip2", "compressed with bzip2", "unpack it: bunzip2 < '{}' > NEW_FILE"), _starts(b"BZh")),
    (FileType("xz", "compressed with xz", "unpack it: unxz < '{}' > NEW_FILE"), _starts(b"\xfd7zXZ\0")),
    (FileType("zstd", "compressed with zstd", "unpack it: unzstd < '{}' > NEW_FILE"), _starts(b"\x28\xb5\x2f\xfd")),
    (FileType("lz4", "compressed with lz4", "unpack it: unlz4 < '{}' > NEW_FILE"), _starts(b"\x04\x22\x4d\x18")),
    (FileType("7z", "a 7z archive", "unpack it: 7z x '{}'"), _starts(b"7z\xbc\xaf\x27\x1c")),
    (FileType("rar", "a RAR archive", "unpack it: unrar x '{}'"), _starts(b"Rar!\x1a\x07")),
    (
        FileType("workbook", "a workbook of a spreadsheet program", "open it there and save it as CSV (UTF-8)"),
        _is_zip_with(rb"\[Content_Types\]\.xml|_rels/|xl/|docProps/|mimetype"),
    ),
    (
        FileType("workbook", "a workbook of a spreadsheet program", "open it there and save it as CSV (UTF-8)"),
        _starts(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),
    ),
    (
        FileType("npz", "an archive of numpy arrays (.npz)", _OTHER_FILE),
        _is_zip_with(rb".*\.npy$"),
    ),
    (
        FileType("frames", "a ZIP archive of frames", _OTHER_FILE),
        _is_zip_with(rb"[0-9]{6,9}\.jpg"),
    ),
    (
        FileType("torch", "a file that torch.save wrote", "it is damaged or incomplete: download it again"),
        _is_zip_with(rb"[^/]+/(data\.pkl|\.format_version|\.storage_alignment|byteorder|version|data/|code/|constants)"),
    ),
    (FileType("zip", "a ZIP archive", "unpack it: unzip '{}'"), _starts(b"PK\x03\x04", b"PK\x05\x06")),
    (FileType("tar", "a tar archive", "unpack it: tar -xf '{}'"), lambda head: head[257:262] == b"ustar"),
    (FileType("hdf5", "an HDF5 file", "convert it with h5py"), _starts(b"\x89HDF\r\n\x1a\n")),
    (FileType("npy", "a numpy array (.npy)", "load it with numpy.load and write it as CSV or JSON"), _starts(b"\x93NUMPY")),
    (FileType("matlab", "a MATLAB file", "convert it with scipy.io.loadmat to CSV"), _starts(b"MATLAB 5.0")),
    (FileType("parquet", "a Parquet table", "convert it with pandas.read_parquet to CSV"), _starts(b"PAR1")),
    (FileType("sqlite", "an SQLite database", "export its table as CSV"), _starts(b"SQLite format 3\0")),
    (FileType("gguf", "a GGUF file of a language model", _OTHER_FILE), _starts(b"GGUF")),
    (FileType("pdf", "a PDF document", _OTHER_FILE), _starts(b"%PDF")),
    (FileType("png", "a PNG picture", _OTHER_FILE), _starts(b"\x89PNG\r\n\x1a\n")),
    (FileType("jpeg", "a JPEG picture", _OTHER_FILE), _starts(b"\xff\xd8\xff")),
    (
        FileType("video", "a video (MP4)", _OTHER_FILE),
        lambda head: head[4:8] in VIDEO_BOXES,
    ),
    (FileType("video", "a video (Matroska or WebM)", _OTHER_FILE), _starts(b"\x1a\x45\xdf\xa3")),
    (FileType("video", "a video (AVI)", _OTHER_FILE), lambda head: head[:4] == b"RIFF" and head[8:12] == b"AVI "),
    (FileType("video", "a video (Ogg)", _OTHER_FILE), _starts(b"OggS")),
    (FileType("video", "a video (ASF or WMV)", _OTHER_FILE), _starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")),
    (FileType("video", "a video (MXF)", _OTHER_FILE), _starts(b"\x06\x0e\x2b\x34\x02\x05\x01\x01")),
    (FileType("video", "a video (GIF)", _OTHER_FILE), _starts(b"GIF8")),
    (FileType("video", "a video (YUV4MPEG2)", _OTHER_FILE), _starts(b"YUV4MPEG2 ")),
    (
        FileType("video", "a video (MPEG)", _OTHER_FILE),
        lambda head: head.startswith((b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1"))
        or (head[:1] == b"G" and head[188:189] == b"G" and head[376:377] == b"G"),
    ),
    (
        FileType("pickle", "a pickle", "it is damaged or incomplete: download it again"),
        lambda head: len(head) > 2 and head[0] == 0x80 and head[1] in range(1, 6),
    ),
    (FileType("safetensors", "a .safetensors file", "give it that suffix, and use it as a weight file"), _is_safetensors),
    (
        FileType("utf-16", "text in UTF-16", "save it as UTF-8: iconv -f UTF-16 -t UTF-8 < '{}' > NEW_FILE"),
        _starts(b"\xff\xfe", b"\xfe\xff"),
    ),
    (FileType("json", "JSON text", "rename it to .json if it has annotations or a split list"), _text_starts(b"{", b"[")),
    (FileType("text", "text", "read it: it may be a message of a server (a table needs the suffix .csv)"), _is_text),
)  # fmt: skip


def file_type_of(head: bytes) -> FileType | None:
    """Detect the type of a file from its first `HEAD_BYTES` bytes; None if the type is unknown."""
    return next((content for content, fits in _TYPES if fits(head)), None)


def read_head(path: Path) -> bytes:
    """The first `HEAD_BYTES` bytes of a file.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return file.read(HEAD_BYTES)


def file_type_hint(path: Path, head: bytes | None = None, wanted: Collection[str] = ()) -> str | None:
    """A hint of the form "it is TYPE: FIX", or None.

    None if the type is one of the `wanted` kinds (then the file is damaged after its first bytes), if the type is
    unknown, or if the file cannot be read.
    """
    try:
        content = file_type_of(read_head(path) if head is None else head)
    except OSError:
        return None
    if content is None or content.kind in wanted:
        return None
    return f"it is {content.name}: {content.fix.format(path)}"


def unreadable_file_error(
    path: Path, reader: str, problem: str, wanted: Collection[str], fix: str = _DOWNLOAD_AGAIN
) -> UserError:
    """An error about a file that its reader could not read.

    `reader` names what was expected ("a readable pickle"), `problem` is the reader's message. `fix` is the advice if the
    file is damaged, empty or of one of the `wanted` kinds; other types have their own advice.
    """
    try:
        content = file_type_of(read_head(path))
    except OSError:
        content = None
    if content is None or content.kind in wanted:
        return UserError(f"{path} is not {reader} ({problem}): {fix}")
    own_fix = fix if content.fix == _DOWNLOAD_AGAIN else content.fix.format(path)
    return UserError(f"{path} is not {reader}: it is {content.name}: {own_fix}")
