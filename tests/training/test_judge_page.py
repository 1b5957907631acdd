"""The judge page: its guards, uploads, queue, worker and files; in Chromium with a real run."""

from __future__ import annotations

import dataclasses
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from starlette.testclient import TestClient

from data_preparation.actions import DIVING
from data_preparation.common.errors import UserError
from data_preparation.pickles import load_pickle
from tests.conftest import PATIENCE_S, REPOSITORY
from tests.judge_stand_in import CRASH, GO, HANG, NoRun, StandIn
from training.judge_page.__main__ import announcement, job_line, tunnel_line
from training.judge_page.app import JudgePage
from training.judge_page.clips import PREFIX, Clips, PrivateFolder
from training.judge_page.forms import MIB, shown_name
from training.judge_page.worker import Job, Worker

TOKEN = "a-token"
ORIGIN = "http://127.0.0.1:8765"
HOSTILE = ['"><img src=x onerror=alert(1)>.mp4', "../../x.mp4", "a\r\nb\u202e.mp4", "<script>.mp4", "x" * 300]


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    worker = Worker(StandIn, bound=2, limit_s=PATIENCE_S)
    worker.start()
    yield worker
    worker.stop()


@pytest.fixture
def page(worker: Worker, tmp_path: Path) -> JudgePage:
    return JudgePage(TOKEN, StandIn.facts, Clips(tmp_path, 4, 60), worker, MIB)


@pytest.fixture
def client(page: JudgePage) -> Iterator[TestClient]:
    with TestClient(page.app(), base_url=ORIGIN, headers={"origin": ORIGIN}, follow_redirects=False) as client:
        yield client


def send(client: TestClient, content: bytes, name: str = "dive.mp4", **headers: str):
    return client.post(f"/{TOKEN}/clips", files={"video": (name, content, "video/mp4")}, headers=headers)


def wait(client: TestClient, address: str) -> str:
    """The state of a clip when nothing waits for the worker any more."""
    found = wait_until(client, address, lambda status: status["state"] not in ("reading", "scoring"))
    return found["state"]


def wait_until(client: TestClient, address: str, reached: Callable[[dict], bool]) -> dict:
    """The status of a clip as soon as `reached` is true for it."""
    end = time.monotonic() + PATIENCE_S
    while not reached(status := client.get(f"{address}/status").json()):
        assert time.monotonic() < end, status
        time.sleep(0.02)
    return status


@pytest.fixture(scope="module")
def dive(shared: Path) -> bytes:
    return (shared / "clips/dive_platform.mp4").read_bytes()


@pytest.mark.parametrize(
    "path", ["/", "/static/page.css", f"/x{TOKEN}/", f"/{TOKEN[:-1]}/", "/%00%ff/", f"/x/../{TOKEN}x/"]
)
def test_every_address_needs_the_token(client: TestClient, path: str):
    assert client.get(path).status_code == 404
    assert client.get(f"/{TOKEN}/").status_code == 200
    assert client.get(f"/{TOKEN}/static/page.css").status_code == 200


def test_requests_need_a_local_host_and_the_pages_origin(client: TestClient):
    assert client.get(f"/{TOKEN}/", headers={"host": "attacker.example:8765"}).status_code == 400
    assert client.get(f"/{TOKEN}/", headers={"host": "localhost:9000"}).status_code == 200
    for origin in ("http://attacker.example", "null", "http://127.0.0.1:1", "https://127.0.0.1:8765", ""):
        assert send(client, b"x", origin=origin).status_code == 403
    policy = client.get(f"/{TOKEN}/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy


def test_a_page_names_no_other_server_and_has_no_inline_script(client: TestClient, dive: bytes):
    address = send(client, dive).headers["location"]
    assert wait(client, address) == "ready"
    for path in (f"/{TOKEN}/", address):
        text = client.get(path).text
        assert not re.findall(r"(?:src|href|action)=\"(?!/a-token/|#main)[^\"]*", text)
        assert not re.search(r"<script(?! src=)| on\w+=| style=", text)


def test_a_clip_is_read_trimmed_scored_and_its_upload_deleted(client: TestClient, page: JudgePage, dive: bytes):
    sent = send(client, dive)
    assert sent.status_code == 303
    address = sent.headers["location"]
    assert wait(client, address) == "ready"
    clip = page.clips.get(address.rpartition("/")[2])
    path = clip.path
    assert (clip.facts.frames, clip.facts.width, clip.facts.height) == (117, 320, 240)
    assert path.read_bytes() == dive
    assert "dive" not in path.name
    assert clip.folder.stat().st_mode & 0o077 == 0
    assert client.get(f"{address}/video", headers={"range": "bytes=0-3"}).content == dive[:4]
    assert client.get(f"{address}/thumbnails/{clip.facts.thumbnails[3]}").content[:2] == b"\xff\xd8"
    assert client.get(f"{address}/thumbnails/2").status_code == 404
    for fields in ({"start": "5", "end": "4"}, {"start": "1", "end": "118"}, {"start": "x", "end": "4"}, {}):
        assert client.post(f"{address}/score", data={**fields, "difficulty": "3.2"}).status_code == 400
    for difficulty in ("", "nan", "-1", "1e999", "3" * 99):
        refused = client.post(f"{address}/score", data={"start": "5", "end": "90", "difficulty": difficulty})
        assert (refused.status_code, "difficulty" in refused.text) == (400, True)
    client.post(f"{address}/score", data={"start": "5", "end": "90", "difficulty": "3.2"})
    assert wait(client, address) == "scored"
    text = client.get(address).text
    assert all(word in text for word in ("71.5", "60.0", "83.0", "frames 5 to 90"))
    assert not path.exists()
    assert client.get(f"{address}/video").status_code == 404
    assert client.get(f"{address}/explanation/0").content == b"a picture"
    assert client.get(f"{address}/explanation/1").status_code == 404
    assert client.post(f"{address}/delete").status_code == 303
    assert not clip.folder.exists()
    assert client.get(address).status_code == 404


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_name_is_text_and_never_a_path(client: TestClient, page: JudgePage, dive: bytes, name: str):
    address = send(client, dive, name).headers["location"]
    assert wait(client, address) == "ready"
    clip = page.clips.get(address.rpartition("/")[2])
    assert clip.path.parent == clip.folder
    assert clip.folder.parent == page.clips.folder
    assert clip.name == shown_name(clip.name)
    assert len(clip.name) <= 80
    text = client.get(address).text
    assert "<img src=x" not in text
    assert "<script>" not in text
    page.clips.remove(clip)


@pytest.mark.parametrize(
    ("content", "name", "status", "words"),
    [
        (b"", "a.mp4", 415, "empty"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "a.mp4", 415, "a PNG picture, not a video"),
        (b"<!doctype html><script>alert(1)</script>", "a.mp4", 415, "a web page"),
        (b"PK\x03\x04" + b"x" * 99, "a.mp4", 415, "a ZIP archive"),
        (b"#!/bin/sh\nrm -rf /\n", "a.mp4", 415, "text, not a video"),
        (b"ffconcat version 1.0\n#\x01\nfile other.mp4\n", "a.mp4", 415, "none of the known types"),
        (b"#EXTM3U\n#\x01\n#EXTINF:4.0,\nother.mp4\n", "a.mp4", 415, "none of the known types"),
        (b"x" * (MIB + 1), "a.mp4", 413, "limit of 1 MiB"),
        (b"x" * (3 * MIB), "a.mp4", 413, "limit of 1 MiB"),
    ],
)
def test_what_is_no_video_is_refused_with_a_sentence(client, page, content: bytes, name: str, status: int, words: str):
    for accept in ("text/html", "application/json"):
        refused = send(client, content, name, accept=accept)
        assert refused.status_code == status
        assert words in (refused.json()["error"] if "json" in accept else refused.text)
    assert not list(page.clips.folder.iterdir())


def test_bytes_are_counted_while_they_arrive_whatever_the_header_says(client: TestClient, page: JudgePage):
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\n'
        while sent < 100 * MIB:
            sent += MIB // 4
            yield bytes(MIB // 4)

    headers = {"content-type": "multipart/form-data; boundary=b"}
    assert client.post(f"/{TOKEN}/clips", content=endless(), headers=headers).status_code == 413
    assert not list(page.clips.folder.iterdir())


FILE_PART = b'--b\r\nContent-Disposition: form-data; name="video"; filename="a.mp4"\r\n\r\nx\r\n'


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        (b"--b\r\nnot a part", "multipart/form-data; boundary=b", 400),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (2 * FILE_PART + b"--b--\r\n", "multipart/form-data; boundary=b", 400),
        (b"x", "multipart/form-data", 400),
        (b"{}", "application/json", 415),
        (b"video=dive.mp4", "application/x-www-form-urlencoded", 400),
    ],
)
def test_a_damaged_form_is_refused(client: TestClient, page: JudgePage, body: bytes, content_type: str, status: int):
    answer = client.post(f"/{TOKEN}/clips", content=body, headers={"content-type": content_type})
    assert answer.status_code == status
    assert not list(page.clips.folder.iterdir())


BROKEN = ["mp4parse_chunk_out_of_range.mp4", "mp4parse_invalid_userdata.mp4", "decord_corrupted.mp4"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_video_fails_with_a_sentence_and_is_deleted(client, page, shared: Path, name: str):
    address = send(client, (shared / "clips/broken" / name).read_bytes(), name).headers["location"]
    assert wait(client, address) == "failed"
    answer = client.get(address)
    assert answer.status_code == 422
    assert name in answer.text
    assert str(page.clips.folder) not in answer.text
    assert not list(page.clips.folder.iterdir())


def test_a_crash_of_the_worker_ends_only_that_clip(client: TestClient, dive: bytes):
    address = send(client, dive + CRASH).headers["location"]
    after = send(client, dive).headers["location"]
    assert wait(client, address) == "failed"
    assert "SIGABRT" in client.get(address).text
    assert wait(client, after) == "ready"


def test_a_clip_has_a_time_limit(tmp_path: Path, dive: bytes):
    worker = Worker(StandIn, bound=2, limit_s=1)
    worker.start()
    page = JudgePage(TOKEN, StandIn.facts, Clips(tmp_path, 4, 60), worker, MIB)
    with TestClient(page.app(), base_url=ORIGIN, headers={"origin": ORIGIN}, follow_redirects=False) as client:
        address = send(client, dive + HANG).headers["location"]
        assert wait(client, address) == "failed"
        assert "longer than 1 s" in client.get(address).text
    worker.stop()


def test_a_full_queue_and_too_many_clips_are_refused_with_503(page: JudgePage, client: TestClient, dive: bytes):
    addresses = [send(client, dive + HANG).headers["location"]]
    status = wait_until(client, addresses[0], lambda status: not status["text"].startswith("Waiting"))
    assert status == {"state": "reading", "text": "Reading the video."}
    while (sent := send(client, dive)).status_code == 303:
        addresses.append(sent.headers["location"])
    assert (sent.status_code, len(addresses)) == (503, 3)
    assert "2 clips wait already" in sent.text
    assert client.get(f"{addresses[2]}/status").json()["text"] == "Waiting: 2 before this one."
    (page.clips.get(addresses[0].rpartition("/")[2]).folder / GO).touch()
    assert [wait(client, address) for address in addresses] == ["ready"] * 3
    assert wait(client, send(client, dive).headers["location"]) == "ready"
    sent = send(client, dive)
    assert sent.status_code == 503
    assert "holds 4 clips" in sent.text


def test_a_clip_that_is_deleted_while_it_is_scored_leaves_no_files(tmp_path: Path):
    jobs: list[Job] = []
    page = JudgePage(TOKEN, StandIn.facts, Clips(tmp_path, 4, 60), SimpleNamespace(submit=jobs.append), MIB)
    clip = page.clips.new()
    page._submit(clip, "score", {}, lambda verdict: None)
    page.clips.remove(clip)
    clip.folder.mkdir()  # by the worker, which writes an explanation
    jobs[0].done(None)
    assert not list(tmp_path.iterdir())


def test_clips_that_nobody_looks_at_are_removed_but_not_busy_ones(tmp_path: Path):
    clips = Clips(tmp_path, 4, keep_s=0)
    old, busy = clips.new(), clips.new()
    old.state = "ready"
    clips.remove_old()
    assert [path.name for path in tmp_path.iterdir()] == [busy.id]


def test_the_private_folder_is_private_and_goes_also_after_a_killed_page(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = tmp_path / f"{PREFIX}killed"
    left.mkdir()
    (left / "in_use").touch()
    with PrivateFolder() as folder, PrivateFolder() as other:  # two pages at the same time
        assert not left.exists()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert folder.exists()
        assert other != folder
    assert not list(tmp_path.iterdir())


def test_a_run_that_cannot_be_loaded_is_one_sentence():
    with pytest.raises(UserError, match="runs/none has no run"):
        Worker(NoRun, 1, 1).start()


@pytest.mark.parametrize(
    ("model", "method", "flags", "names"),
    [
        ("timesformer", "regression", {}, []),
        ("timesformer", "musdl", {}, ["difficulty"]),
        ("i3d", "core", {"pairs": "difficulty"}, ["difficulty"]),
        ("i3d", "core", {"pairs": "number"}, ["difficulty", "dive_number"]),
        ("i3d", "core", {"pairs": "difficulty", "difficulty": "predicted"}, []),
    ],
)
def test_a_person_is_asked_what_the_method_needs(model: str, method: str, flags: dict, names: list[str]):
    from tests.small import FACTS, tiny_config
    from training.judge_page.run_judge import questions_of
    from training.model import build_model
    from training.scorer import Scorer
    from training.tasks import task_of

    config = tiny_config(model, method, **flags)
    scorer = Scorer(config, build_model(config, FACTS), FACTS, task_of(config.task), torch.device("cpu"))
    questions = questions_of(scorer)
    assert [question.name for question in questions] == names
    assert all(question.required for question in questions)
    kinds = dataclasses.replace(FACTS, rules={"platform": DIVING, "springboard": DIVING})
    assert [q.name for q in questions_of(dataclasses.replace(scorer, facts=kinds))] == [*names, "kind"]


def test_the_readme_has_the_lines_that_the_command_prints():
    readme = (REPOSITORY / "training/README.md").read_text()
    assert f"\n{job_line('runs/NAME')}\n{tunnel_line(8765, 'USER', 'NODE')}\n" in readme
    printed = announcement(8765, TOKEN, Path("my runs/a"))
    assert f"http://127.0.0.1:8765/{TOKEN}/" in printed
    script = next(shlex.split(line)[-1] for line in printed.splitlines() if "srun" in line)
    assert shlex.split(script)[-2:] == ["--run", "my runs/a"]


# ------------------------------------------------------------------------------------------------------- in a browser


class Browser:
    """A headless Chromium at the page."""

    def __init__(self, address: str) -> None:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service

        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1000"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        self.driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        self.address = address

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.driver.quit()

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def text(self, selector: str) -> str:
        return self.all(selector)[0].text

    def wait_for(self, selector: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, PATIENCE_S).until(lambda _: any(e.is_displayed() for e in self.all(selector)))

    def drop(self, path: Path) -> None:
        """Give a file to the page of an empty form; the upload starts at once."""
        self.driver.get(self.address)
        self.all("#file")[0].send_keys(str(path))

    def set_slider(self, name: str, value: int) -> None:
        self.driver.execute_script(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('input'))",
            f"{name}-slider",
            value,
        )

    def faults(self) -> list[str]:
        """What the browser complains of, such as blocked scripts, besides the answers of refused requests."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in messages if "Failed to load resource" not in message]


@pytest.fixture
def served(train: Callable[..., object], tmp_path: Path) -> Iterator[tuple[str, subprocess.Popen, Path]]:
    """The real command with a run of one epoch: (address, process, its temporary folder)."""
    train("--run_name", "judged", "--epochs", "1", "--evaluate", "False")
    folder = tmp_path / "temporary"
    folder.mkdir()
    command = [sys.executable, "-m", "training.judge_page", "--run", str(tmp_path / "runs/judged")]
    command += ["--port", "0", "--upload_limit", "2", "--gpu", "False"]
    process = subprocess.Popen(
        command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(folder)}
    )
    try:
        found = None
        while found is None and (line := process.stdout.readline()):
            found = re.search(r"http://127\.0\.0\.1:\d+/\S+/", line)
        assert found, "the command printed no address"
        yield found[0], process, folder
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(not shutil.which("chromedriver"), reason="chromedriver is not installed (Debian: chromium-driver)")
def test_people_score_clips_in_a_browser(served, dataset: Path, shared: Path, tmp_path: Path):
    pytest.importorskip("selenium")
    from selenium.webdriver.support.ui import WebDriverWait

    address, process, temporary = served
    clips = shared / "clips"
    hostile = tmp_path / HOSTILE[0]
    shutil.copy(dataset / "whole_videos/01.mp4", hostile)
    dive = load_pickle(dataset / "annotations/final_annotations_dict.pkl")[1, 1]
    start, end = dive["start_frame"], dive["end_frame"]
    large = tmp_path / "large.mp4"
    large.write_bytes(bytes(3 * MIB))
    with Browser(address) as ana, Browser(address) as ben:
        # two people at once: dives as those of the training, and a real dive in a file that the browser does not play
        ana.drop(hostile)
        ben.drop(clips / "dive_mtl_aqa_03_055.avi")
        for person in (ana, ben):
            person.wait_for("#trim")
        assert ana.text("h1") == hostile.name.replace('"', "%22")  # as browsers write a quote in the name of a file
        ana.wait_for("#play")
        ben.wait_for("#first")
        assert not ben.all("#preview")[0].is_displayed()
        ana.set_slider("start", start)
        ana.set_slider("end", end)
        assert [ana.all(f"#{name}")[0].get_attribute("value") for name in ("start", "end")] == [str(start), str(end)]
        for person in (ana, ben):
            person.all("#trim button.main")[0].click()
        for person in (ana, ben):
            person.wait_for(".verdict")
        assert f"frames {start} to {end}" in ana.text(".verdict")
        assert "90 % interval" in ana.text(".verdict")
        loaded = "return document.querySelector('.why-card img').naturalWidth > 0 && document.querySelector('.why-card video').duration > 0"
        WebDriverWait(ana.driver, PATIENCE_S).until(lambda driver: driver.execute_script(loaded))
        assert "frames 1 to 103" in ben.text(".verdict")
        assert "Declined" in ben.text(".verdict")
        assert not [
            path for path in temporary.rglob("*") if path.is_file() and path.stat().st_size == hostile.stat().st_size
        ]
        # files that are no clip
        for file, words, selector in (
            (clips / "broken/mp4parse_invalid_userdata.mp4", "cut short or damaged", ".stop"),
            (clips / "broken/thumborvideo_corrupt_0bytes.mp4", "empty", "#message"),
            (clips / "README.md", "not a video", "#message"),
            (large, "limit of 2 MiB", "#message"),
        ):
            ana.drop(file)
            ana.wait_for(selector)
            assert words in ana.text(selector), file.name
        assert ana.faults() == ben.faults() == []
    process.terminate()
    assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    assert not list(temporary.glob(f"{PREFIX}*"))
