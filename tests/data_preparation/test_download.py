"""Downloads from a local HTTP server that simulates the faults of real servers."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_preparation import download, transfer
from data_preparation.catalogue import Artefact, content_fault, direct_link, load_catalogue
from data_preparation.common import files
from data_preparation.common.errors import UserError
from data_preparation.layout import DatasetLayout
from tests.conftest import REPOSITORY

BODY = b"\x00\x00\x00\x18ftypmp42" + bytes(range(256)) * 4000  # about 1 MB, begins like an mp4 file
PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>"


class Server(ThreadingHTTPServer):
    """Serves BODY at /<behaviour>/<name>; `requests` are (path, Range header)."""

    daemon_threads = True
    body = BODY

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []
        self.release = threading.Event()  # ends the stalled responses

    def url(self, behaviour: str, name: str = "01.mp4") -> str:
        return f"http://127.0.0.1:{self.server_port}/{behaviour}/{name}"

    def count(self, behaviour: str) -> int:
        return sum(path.startswith(f"/{behaviour}/") for path, _ in self.requests)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments) -> None: ...

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers.get("Range")))
        behaviour = self.path.split("/")[1]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, behaviour)(self.server.count(behaviour))

    def send(self, body: bytes, status: int = 200, cut: int | None = None, **headers: object) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": len(body), **headers}.items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body[:cut])
        if cut is not None or headers.get("Content_Length", 0) is None:
            self.close_connection = True

    def ranged(self, cut: int | None = None, tag: str = '"v1"') -> None:
        body = self.server.body
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not wanted or self.headers.get("If-Range", tag) != tag:
            return self.send(body, cut=cut, ETag=tag)
        start = int(wanted[1])
        if start >= len(body):
            return self.send(b"", 416, Content_Range=f"bytes */{len(body)}")
        span = f"bytes {start}-{len(body) - 1}/{len(body)}"
        return self.send(body[start:], 206, cut=cut, ETag=tag, Content_Range=span)

    def good(self, count: int) -> None:
        self.ranged()

    def breaks_often(self, count: int) -> None:
        self.ranged(cut=300_000)

    def truncated(self, count: int) -> None:  # never more than the first half
        half = len(self.server.body) // 2
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        self.send(self.server.body[start:], 206 if start else 200, cut=max(half - start, 0),
                  Content_Range=f"bytes {start}-{len(self.server.body) - 1}/{len(self.server.body)}" if start else None)  # fmt: skip

    def no_range(self, count: int) -> None:
        self.send(self.server.body, cut=400_000 if count == 1 else None)

    def changes(self, count: int) -> None:
        self.ranged(cut=400_000 if count == 1 else None, tag=f'"v{count}"')

    def no_length(self, count: int) -> None:
        self.send(self.server.body, Content_Length=None, Connection="close")

    def other_bytes(self, count: int) -> None:
        if count == 1:
            return self.ranged(cut=400_000)
        return self.send(self.server.body[5:], 206, Content_Range=f"bytes 5-{len(BODY) - 1}/{len(BODY)}")

    def html(self, count: int) -> None:
        self.send(PAGE, Content_Type="text/html; charset=utf-8")

    def disguised(self, count: int) -> None:
        self.send(PAGE, Content_Type="application/octet-stream")

    def text(self, count: int) -> None:
        self.send(b"quota exceeded", Content_Type="text/plain")

    def login(self, count: int) -> None:
        self.send(b"", 302, Location="/html/signin")

    def loop(self, count: int) -> None:
        self.send(b"", 302, Location=self.path)

    def missing(self, count: int) -> None:
        self.send(b"", 404)

    def busy(self, count: int) -> None:
        if count < 2:
            return self.send(b"", 503, Retry_After="0")
        return self.ranged()

    def down(self, count: int) -> None:
        self.send(b"", 503)

    def empty(self, count: int) -> None:
        self.send(b"")

    def stalls(self, count: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        self.wfile.write(BODY[:200_000])
        self.server.release.wait(30)

    def slow(self, count: int) -> None:
        if self.headers.get("Range"):
            return self.ranged()
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.send_header("ETag", '"v1"')
        self.end_headers()
        for start in range(0, len(BODY), 100_000):
            self.wfile.write(BODY[start : start + 100_000])
            self.server.release.wait(0.3)
        return None

    def huge(self, count: int) -> None:
        self.send(self.server.body, Content_Length=10**15)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.release.set()
        running.shutdown()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "_MAX_WAIT_S", 0.05)


def catalogue(folder: Path, *sections: str) -> Path:
    path = folder / "catalogue.ini"
    path.write_text("\n".join(sections))
    return path


def section(name: str, *sources: object, **entries: object) -> str:
    listed = "".join(f"\n    {source}" for source in sources)
    return f"[{name}]\nsources ={listed}\n" + "".join(f"{k} = {v}\n" for k, v in entries.items())


def fetch(folder: Path, *sections: str, kind: str = "all", flags: tuple[str, ...] = ()) -> None:
    arguments = ["--dataset", str(folder / "set"), "--catalogue", str(catalogue(folder, *sections)), "--retries", "1"]
    download.main([kind, *arguments, *flags])


def video(folder: Path, name: str = "01.mp4") -> Path:
    return folder / "set" / "whole_videos" / name


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "set").rglob("*") if "part" in p.name or ".tmp" in p.name)


# ------------------------------------------------------------------------------------------------- successful downloads


@pytest.mark.parametrize("behaviour", ["good", "breaks_often", "no_range", "changes", "no_length", "busy"])
def test_the_file_is_complete_in_spite_of_server_faults(server: Server, tmp_path: Path, behaviour: str):
    fetch(tmp_path, section("videos/01.mp4", server.url(behaviour)))
    assert video(tmp_path).read_bytes() == BODY
    entry = json.loads((tmp_path / "set" / "manifest.json").read_text())["whole_videos/01.mp4"]
    assert entry["sha256"] == hashlib.sha256(BODY).hexdigest()
    assert (entry["bytes"], entry["source"]) == (len(BODY), server.url(behaviour))
    assert leftovers(tmp_path) == []


def test_a_broken_connection_resumes_where_it_stopped(server: Server, tmp_path: Path):
    fetch(tmp_path, section("videos/01.mp4", server.url("breaks_often")))
    starts = [int(r[6:-1]) for _, r in server.requests if r]
    assert len(starts) >= 3
    assert starts == sorted(starts)
    assert all(start >= 65_536 * (i + 1) for i, start in enumerate(starts))


def test_a_restart_from_the_beginning_is_reported(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture):
    fetch(tmp_path, section("videos/01.mp4", server.url("no_range")), section("videos/02.mp4", server.url("changes")))
    output = capsys.readouterr().out
    assert re.search(r"videos/01\.mp4: .* are downloaded again from the beginning: the server ignores Range", output)
    assert re.search(
        r"videos/02\.mp4: .* are downloaded again from the beginning: the file on the server has changed", output
    )


def test_kinds_go_to_their_folders_and_only_selects(server: Server, tmp_path: Path):
    weights = tmp_path / "w.pyth"
    weights.write_bytes(b"PK\x03\x04 weights")
    sections = (
        section("videos/01.mp4", server.url("good")),
        section("videos/02.mp4", server.url("missing")),
        section("annotations/vocab.json", "v.json"),
        section("weights/w.pyth", weights),
    )
    (tmp_path / "v.json").write_text("{}")
    fetch(tmp_path, *sections, flags=("--only", "01", "vocab.json", "w"))
    found = sorted(str(p.relative_to(tmp_path / "set")) for p in (tmp_path / "set").glob("*/*"))
    assert found == ["annotations/vocab.json", "weights/w.pyth", "whole_videos/01.mp4"]
    fetch(tmp_path, *sections, kind="weights")
    with pytest.raises(UserError, match=r"--only 07: the catalogue has 01\.mp4, 02\.mp4"):
        fetch(tmp_path, *sections, kind="videos", flags=("--only", "07"))


def test_a_mirror_or_a_local_copy_is_used_if_the_first_source_fails(server: Server, tmp_path: Path):
    (tmp_path / "mine.mp4").write_bytes(BODY)
    fetch(tmp_path, section("videos/01.mp4", server.url("missing"), server.url("html"), "mine.mp4"))
    assert video(tmp_path).read_bytes() == BODY
    assert (tmp_path / "mine.mp4").exists()


def test_a_finished_file_is_checked_and_not_fetched_again(server: Server, tmp_path: Path, capsys):
    wanted = section("videos/01.mp4", server.url("good"))
    fetch(tmp_path, wanted)
    fetch(tmp_path, wanted)
    assert len(server.requests) == 1
    assert "already present" in capsys.readouterr().out
    video(tmp_path).write_bytes(BODY[:-1] + b"!")
    with pytest.raises(UserError, match=r"01\.mp4 has SHA-256 .*changed or damaged.*delete it to download it again"):
        fetch(tmp_path, wanted)
    assert video(tmp_path).exists()


def test_a_file_put_in_place_by_hand_is_recorded_unless_it_is_a_web_page(server: Server, tmp_path: Path):
    video(tmp_path).parent.mkdir(parents=True)
    video(tmp_path).write_bytes(BODY)
    fetch(tmp_path, section("videos/01.mp4", server.url("good")))
    assert server.requests == []
    assert "whole_videos/01.mp4" in json.loads((tmp_path / "set" / "manifest.json").read_text())
    video(tmp_path, "02.mp4").write_bytes(PAGE)
    with pytest.raises(UserError, match="a web page came instead of the file"):
        fetch(tmp_path, section("videos/02.mp4", server.url("good")))


def test_the_folder_of_a_synthetic_data_set_is_refused(server: Server, tmp_path: Path):
    layout = DatasetLayout(tmp_path / "set")
    layout.annotations.mkdir(parents=True)
    layout.synthetic_file.write_text("{}")
    with pytest.raises(UserError, match="holds a synthetic data set: name another folder"):
        fetch(tmp_path, section("videos/01.mp4", server.url("good")))
    assert server.requests == []


def test_a_killed_download_resumes(server: Server, tmp_path: Path):
    wanted = section("videos/01.mp4", server.url("slow"))
    command = [sys.executable, "-m", "data_preparation.download", "videos", "--dataset", tmp_path / "set",
               "--catalogue", catalogue(tmp_path, wanted)]  # fmt: skip
    running = subprocess.Popen(command, cwd=REPOSITORY)
    part = video(tmp_path, "01.mp4.part")
    deadline = time.monotonic() + 30
    while not (part.exists() and part.stat().st_size > 200_000) and time.monotonic() < deadline:
        time.sleep(0.05)
    second = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert second.returncode == 2
    assert "01.mp4 is being downloaded by another process" in second.stderr
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not video(tmp_path).exists()
    fetch(tmp_path, wanted)
    assert video(tmp_path).read_bytes() == BODY
    assert int(server.requests[-1][1][6:-1]) > 200_000
    assert leftovers(tmp_path) == []


def test_downloads_work_on_a_file_system_without_locks(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def lockf(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(files.fcntl, "lockf", lockf)
    wanted = [section(f"videos/{name}.mp4", server.url("good")) for name in ("01", "02", "03")]
    fetch(tmp_path, *wanted)
    assert video(tmp_path).read_bytes() == BODY
    assert len(json.loads((tmp_path / "set" / "manifest.json").read_text())) == 3
    assert leftovers(tmp_path) == []
    video(tmp_path).unlink()
    owner = video(tmp_path, ".01.mp4.part.lock.owner")
    owner.write_text("other-node 1")
    with pytest.raises(UserError, match=r"01\.mp4 is being downloaded by process 1 on other-node: .* delete ") as error:
        fetch(tmp_path, *wanted)
    assert "fix: put the file" not in str(error.value)  # a mirror would not help


# ------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        ("html", "a web page came instead of the file: the link has expired, or needs a log-in"),
        ("disguised", "a web page came instead of the file"),
        ("text", r"does not begin like a \.mp4 file \(it begins with b'quota exceeded'\)"),
        ("login", r"redirected to http://127\.0\.0\.1:\d+/html/signin, a web page: the file needs a log-in"),
        ("loop", "too many redirects"),
        ("missing", "the server answers 404 Not Found"),
        ("down", "the server answers 503 Service Unavailable; gave up after 2 failed attempts"),
        ("truncated", "the connection broke after 5.. kB; gave up after 2 failed attempts"),
        ("other_bytes", "the server sends other bytes than were requested"),
        ("empty", "does not begin like"),
        ("huge", r"has \S+ [GM]B free, but .* need 1e\+06 GB: free some space"),
    ],
)
def test_each_failure_has_its_message_and_other_files_are_downloaded(
    server: Server, tmp_path: Path, behaviour: str, message: str
):
    with pytest.raises(UserError, match=message) as error:
        fetch(tmp_path, section("videos/01.mp4", server.url(behaviour)), section("videos/02.mp4", server.url("good")))
    assert "01.mp4" in str(error.value)
    assert not video(tmp_path).exists()
    assert video(tmp_path, "02.mp4").read_bytes() == BODY


def test_a_connection_without_data_counts_as_broken(server: Server, tmp_path: Path):
    with pytest.raises(UserError, match=r"no data for 0\.3 s"):
        fetch(tmp_path, section("videos/01.mp4", server.url("stalls")), flags=("--timeout", "0.3"))
    assert server.count("stalls") >= 2


@pytest.mark.parametrize(
    ("url", "cause"),
    [("http://127.0.0.1:9/01.mp4", "Connection refused"), ("http://no-such-host.invalid/01.mp4", "resol|not known")],
)
def test_without_network_the_message_names_the_login_node(tmp_path: Path, url: str, cause: str):
    with pytest.raises(UserError, match=rf"no connection \(.*({cause}).*run this on the login node"):
        fetch(tmp_path, section("videos/01.mp4", url))


def test_a_truncated_file_resumes_when_the_server_works_again(server: Server, tmp_path: Path):
    with pytest.raises(UserError):
        fetch(tmp_path, section("videos/01.mp4", server.url("truncated")))
    assert leftovers(tmp_path) == ["01.mp4.part", "01.mp4.part.json"]
    partial = video(tmp_path, "01.mp4.part").read_bytes()
    assert len(partial) > len(BODY) // 2 - 20_000
    assert partial == BODY[: len(partial)]
    Handler.truncated, original = Handler.good, Handler.truncated
    try:
        fetch(tmp_path, section("videos/01.mp4", server.url("truncated")))
    finally:
        Handler.truncated = original
    assert video(tmp_path).read_bytes() == BODY
    assert int(server.requests[-1][1][6:-1]) == len(partial)


def test_a_partial_file_is_never_continued_from_another_source(server: Server, tmp_path: Path):
    with pytest.raises(UserError):
        fetch(tmp_path, section("videos/01.mp4", server.url("truncated")))
    server.body = BODY[:12] + BODY[12:][::-1]
    fetch(tmp_path, section("videos/01.mp4", server.url("good")))
    assert video(tmp_path).read_bytes() == server.body


def test_a_wrong_checksum_or_size_is_refused(server: Server, tmp_path: Path):
    wanted = section("videos/01.mp4", server.url("good"))
    fetch(tmp_path, wanted)
    video(tmp_path).unlink()
    server.body = BODY + b"more"
    with pytest.raises(
        UserError, match=r"the received file has SHA-256 .*, but on \d{4}-\d\d-\d\d it had .*delete its entry"
    ):
        fetch(tmp_path, wanted)
    assert not video(tmp_path).exists()
    with pytest.raises(UserError, match=r"the received file has SHA-256 .*, but the catalogue states 000000000000"):
        fetch(tmp_path, section("videos/02.mp4", server.url("good"), sha256="0" * 64))
    with pytest.raises(UserError, match=rf"has {len(server.body)} bytes, but the catalogue states 5"):
        fetch(tmp_path, section("videos/03.mp4", server.url("good"), bytes=5))
    assert leftovers(tmp_path) == []


def test_local_sources_that_are_not_files(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "page.mp4").write_bytes(PAGE)
    with pytest.raises(UserError, match=r"folder: not a file; .*none: No such file.*page.mp4: a web page"):
        fetch(tmp_path, section("videos/01.mp4", "folder", "none", "page.mp4"))


def test_a_full_disk_is_a_user_error(server: Server, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=10**12))
    monkeypatch.setattr(transfer.PartialFile, "start", lambda *a: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(UserError, match=r"01\.mp4 could not be written \(No space left\): make room"):
        download.ensure_file(
            download.DownloadContext(
                DatasetLayout(tmp_path), download.DownloadConfig(), download.Manifest(DatasetLayout(tmp_path)),
                rows=_one_row(),
            ),
            Artefact("videos", "01.mp4", (server.url("good"),)), print,
        )  # fmt: skip


def _one_row():
    rows = download.queue.SimpleQueue()
    rows.put(0)
    return rows


def test_running_downloads_reserve_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(transfer.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    space = transfer.DiskSpace()
    space.reserve(tmp_path / "a", 600)
    with pytest.raises(UserError, match="free some space"):
        space.reserve(tmp_path / "b", 600)
    space.release(tmp_path / "a", 300)
    space.reserve(tmp_path / "b", 600)


# -------------------------------------------------------------------------------------------------------- the catalogue


def test_the_catalogue_is_complete():
    artefacts = load_catalogue()
    names = {kind: [a.name for a in artefacts if a.kind == kind] for kind in ("videos", "annotations", "weights")}
    assert [int(n[:2]) for n in names["videos"]] == [1, 2, 3, 4, 5, 6, 7, 9, 10, 13, 14, 17, 18, 22, 26]
    layout = DatasetLayout(Path())
    assert {layout.annotation_file.name, layout.train_file.name, layout.test_file.name, layout.captions_file.name,
            layout.vocabulary_file.name} <= set(names["annotations"])  # fmt: skip
    assert len([n for n in names["weights"] if n.startswith("TimeSformer")]) == 13
    assert "c3d.pickle" in names["weights"]
    for artefact in artefacts:
        assert all("dropbox" not in source or source.endswith("dl=1") for source in artefact.sources)


def test_the_catalogues_checksums_are_those_of_the_released_files(shared: Path, tmp_path: Path):
    local = [
        section(f"annotations/{a.name}", shared / "mtl_aqa" / a.name, sha256=a.sha256)
        for a in load_catalogue()
        if a.kind == "annotations"
    ]
    fetch(tmp_path, *local, kind="annotations")
    assert len(list((tmp_path / "set" / "annotations").iterdir())) == 6


@pytest.mark.parametrize(
    ("copied", "direct"),
    [
        ("https://www.dropbox.com/s/x/w.pyth?dl=0", "https://www.dropbox.com/s/x/w.pyth?dl=1"),
        ("https://www.dropbox.com/scl/x/w.pyth?rlkey=a%20b&dl=0", "https://www.dropbox.com/scl/x/w.pyth?rlkey=a+b&dl=1"),
        ("https://github.com/a/b/blob/main/c.pkl", "https://github.com/a/b/raw/main/c.pkl"),
        ("https://example.org/blob/c.pkl?dl=0", "https://example.org/blob/c.pkl?dl=0"),
    ],
)  # fmt: skip
def test_copied_links_become_direct_links(copied: str, direct: str):
    assert direct_link(copied) == direct


def test_all_faults_of_a_catalogue_are_reported_at_once(tmp_path: Path):
    path = catalogue(
        tmp_path,
        section("videos/../evil.mp4", "x"), section("films/01.mp4", "x"), section("videos/01.mp4"),
        section("videos/02.mp4", "ftp://x/y", "http://[bad"), section("videos/03.mp4", "x", sha256="abc", bytes="many", mirror="y"),
    )  # fmt: skip
    with pytest.raises(UserError) as error:
        load_catalogue(path)
    text = str(error.value)
    for part in (
        "'videos/../evil.mp4'",
        "'films/01.mp4'",
        "no sources",
        "ftp://x/y",
        "http://[bad",
        "64 hex",
        "'many'",
        "mirror",
    ):
        assert part in text
    path.write_text("")
    with pytest.raises(UserError, match="lists no files"):
        load_catalogue(path)
    path.write_text("no section")
    with pytest.raises(UserError, match="not a readable catalogue"):
        load_catalogue(path)


@pytest.mark.parametrize("content", ["[", "[]", '{"whole_videos/01.mp4": 5}', '{"whole_videos/01.mp4": {}}'])
def test_a_damaged_manifest_is_one_sentence(tmp_path: Path, content: str):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=r"manifest\.json is unreadable .*repair it, or delete it"):
        fetch(tmp_path, section("videos/01.mp4", "x"))


@pytest.mark.parametrize("kind", [[], ["films"], ["-h"]])
def test_a_missing_or_wrong_kind_lists_the_kinds(kind: list[str], capsys: pytest.CaptureFixture):
    with pytest.raises((UserError, SystemExit)) as error:
        download.main(kind)
    assert "annotations" in str(error.value) + capsys.readouterr().out


def test_wrong_files_are_detected_from_their_first_bytes():
    assert content_fault("a.pyth", b"PK\x03\x04...") is None
    assert content_fault("a.pyth", b"\x80\x02") is None
    assert content_fault("a.mkv", b"\x1a\x45\xdf\xa3") is None
    assert content_fault("a.json", b' {"a": 1}') is None
    assert "web page" in content_fault("a.pkl", b"\n<HTML>")
    assert "begins with" in content_fault("a.json", b"error")
    for name in ("a.pkl", "a.json", "a.mp4", "a.pth", "a.csv"):  # for every suffix
        assert "pointer of git-lfs" in content_fault(name, b"version https://git-lfs.github.com/spec/v1\n")
        assert "gunzip" in content_fault(name, b"\x1f\x8b\x08")
    assert "an HDF5 file" in content_fault("a.pth", b"\x89HDF\r\n\x1a\n")


# -------------------------------------------------------------------------------------------------------------- YouTube


def test_without_yt_dlp_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)
    with pytest.raises(UserError, match="YouTube needs yt-dlp: pip install yt-dlp"):
        fetch(tmp_path, section("videos/01.mp4", "https://www.youtube.com/watch?v=x"))


def test_yt_dlp_downloads_if_it_is_installed(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The real yt-dlp with the local server: it accepts any link to a video."""
    pytest.importorskip("yt_dlp", reason="yt-dlp is not installed; it is optional")
    monkeypatch.setattr(transfer, "is_youtube", lambda source: True)
    fetch(tmp_path, section("videos/01.mp4", server.url("good")))
    assert video(tmp_path).read_bytes() == BODY
    with pytest.raises(UserError, match=r"yt-dlp: .*404"):
        fetch(tmp_path, section("videos/02.mp4", server.url("missing")))


def test_download_videos_sh(server: Server, tmp_path: Path):
    listed = catalogue(tmp_path, section("videos/01.mp4", server.url("good")))
    done = subprocess.run(
        ["bash", REPOSITORY / "data_preparation" / "download_videos.sh", "--catalogue", listed], cwd=tmp_path,
        env={**os.environ, "DEEPSPORTS_DATASET": str(tmp_path / "set"), "DEEPSPORTS_VENV": sys.prefix},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "1 of 1 files are in" in done.stdout
    assert video(tmp_path).read_bytes() == BODY
