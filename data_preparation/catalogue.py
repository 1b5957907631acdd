"""Read the catalogue of files that can be downloaded (catalogue.ini), and check the type of downloaded files."""

from __future__ import annotations

import configparser
import os
import re
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from data_preparation.actions import VideoFacts, video_name
from data_preparation.common.errors import UserError, first_line
from data_preparation.file_types import POINTERS_AND_COMPRESSED, VIDEO_BOXES, file_type_of
from data_preparation.layout import DatasetLayout

KINDS = ("videos", "annotations", "weights")
CATALOGUE = Path(__file__).with_name("catalogue.ini")
_KEYS = {"sources", "sha256", "bytes", "frames_per_second", "frames"}
_YOUTUBE = ("youtube.com", "youtu.be", "youtube-nocookie.com")


@dataclass(frozen=True)
class Artefact:
    """One file of the catalogue: its sources in the order in which they are tried, and its known properties."""

    kind: str
    name: str
    sources: tuple[str, ...]
    sha256: str | None = None
    size: int | None = None  # bytes
    facts: VideoFacts = field(default_factory=VideoFacts)  # of a video: properties of the file that was labelled

    def target(self, layout: DatasetLayout) -> Path:
        """The path of the file in a data set."""
        return getattr(layout, self.kind) / self.name


def is_web(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def is_youtube(source: str) -> bool:
    host = (urlsplit(source).hostname or "").lower()
    return any(host == name or host.endswith(f".{name}") for name in _YOUTUBE)


def direct_link(url: str) -> str:
    """The link to the file itself for a copied link to its web page: Dropbox needs dl=1, GitHub /raw/ instead of /blob/."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if host == "dropbox.com" or host.endswith(".dropbox.com"):
        query = [(k, v) for k, v in parse_qsl(parts.query, keep_blank_values=True) if k != "dl"]
        return urlunsplit(parts._replace(query=urlencode([*query, ("dl", "1")])))
    if host == "github.com":
        return urlunsplit(parts._replace(path=parts.path.replace("/blob/", "/raw/", 1)))
    return url


def load_catalogue(path: Path = CATALOGUE) -> list[Artefact]:
    """Load all files of a catalogue, in its order.

    Local sources are relative to the folder of the catalogue; `~` and $VARIABLES are expanded.

    Raises:
        UserError: the catalogue is unreadable, or has faults (one per line).
    """
    parser = configparser.ConfigParser(interpolation=None)  # links contain per cent signs
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, configparser.Error) as error:
        raise UserError(f"{path} is not a readable catalogue ({first_line(error)}): correct it") from None
    artefacts, faults = [], []
    for section in parser.sections():
        found = _section_faults(section, dict(parser[section]))
        faults += [f"{path}, [{section}]: {fault}" for fault in found]
        if not found:
            kind, _, name = section.partition("/")
            fields = parser[section]
            sources = tuple(_resolved(line, path.parent) for line in fields["sources"].split("\n") if line.strip())
            size = int(fields["bytes"]) if fields.get("bytes") else None
            digest = (fields.get("sha256") or "").lower() or None
            artefacts.append(Artefact(kind, name, sources, digest, size, _facts(dict(fields), path.name)))
    if faults:
        raise UserError.of(faults)
    if not artefacts:
        raise UserError(
            f"{path} lists no files: write a section for each file, such as [videos/01.mp4] with its sources"
        )
    return artefacts


def _section_faults(section: str, fields: dict[str, str]) -> list[str]:
    kind, _, name = section.partition("/")
    faults = []
    if kind not in KINDS or not re.fullmatch(r"[\w.+-]+", name) or name.startswith("."):
        faults.append(f"the section name '{section}' is not allowed: use videos/NAME, annotations/NAME or weights/NAME")
    if unknown := sorted(set(fields) - _KEYS):
        faults.append(f"unknown entry {', '.join(unknown)}; use {', '.join(sorted(_KEYS))}")
    sources = [line.strip() for line in fields.get("sources", "").split("\n") if line.strip()]
    if not sources:
        faults.append("no sources: give a link or a path")
    faults += [f"'{s}' is neither an http(s) link nor a path" for s in sources if "://" in s and not _is_valid_link(s)]
    if (digest := fields.get("sha256")) and not re.fullmatch(r"[0-9a-fA-F]{64}", digest):
        faults.append(f"sha256 '{digest}' is not 64 hexadecimal digits")
    if (size := fields.get("bytes")) and not size.isdigit():
        faults.append(f"bytes '{size}' is not a whole number")
    if (frames := fields.get("frames")) and not (frames.isdigit() and int(frames)):
        faults.append(f"frames '{frames}' is not a whole number above 0")
    if (rate := fields.get("frames_per_second")) and _fraction(rate) is None:
        faults.append(f"frames_per_second '{rate}' is not a number such as 25 or 30000/1001")
    if kind != "videos" and (frames or rate):
        faults.append("frames and frames_per_second are entries of videos: remove them here")
    return faults


def _fraction(text: str) -> Fraction | None:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
    return value if 1 <= value <= 1000 else None


def _facts(fields: dict[str, str], where: str) -> VideoFacts:
    rate, frames = fields.get("frames_per_second"), fields.get("frames")
    return VideoFacts(_fraction(rate) if rate else None, int(frames) if frames else None, where)


def catalogue_facts(path: Path = CATALOGUE) -> dict[str, VideoFacts]:
    """What a catalogue states about the video files, by video; videos without such entries are left out.

    Raises:
        UserError: as `load_catalogue`.
    """
    numbered = {
        video_name(Path(a.name).stem): a.facts for a in load_catalogue(path) if re.fullmatch(r"[0-9]+\.\w+", a.name)
    }
    return {video: facts for video, facts in numbered.items() if facts.frames_per_second or facts.frames}


def _is_valid_link(link: str) -> bool:
    try:
        return is_web(link) and bool(urlsplit(link).hostname)
    except ValueError:
        return False


def _resolved(source: str, folder: Path) -> str:
    source = source.strip()
    return direct_link(source) if is_web(source) else str(folder / Path(os.path.expandvars(source)).expanduser())


def content_fault(name: str, head: bytes) -> str | None:
    """A message if the first bytes (`file_types.HEAD_BYTES`) show that it is the wrong file, else None.

    Wrong files are web pages, pointers, compressed files and messages of a server.
    """
    file_type = file_type_of(head)
    if file_type is not None and file_type.kind in ("html", "xml"):
        return "a web page came instead of the file: the link has expired, or needs a log-in or a confirmation; download the file in a browser"
    suffix = Path(name).suffix.lower()
    fits = {
        (".mp4", ".m4v", ".mov"): head[4:8] in VIDEO_BOXES,
        (".mkv", ".webm"): head.startswith(b"\x1a\x45\xdf\xa3"),
        (".avi",): head.startswith(b"RIFF"),
        (".pyth", ".pth", ".pt", ".pickle"): head.startswith((b"\x80", b"PK\x03\x04")),
        (".json",): file_type is not None and file_type.kind == "json",
    }
    mismatch = any(suffix in suffixes and not fit for suffixes, fit in fits.items())
    if file_type is not None and (
        file_type.kind in POINTERS_AND_COMPRESSED or (mismatch and file_type.kind not in ("text", "empty"))
    ):
        return f"the received file is {file_type.name}: {file_type.fix.format(name)}"
    if mismatch:
        return f"the received file does not begin like a {suffix} file (it begins with {head[:16]!r})"
    return None
