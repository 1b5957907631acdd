"""job_files/setup.sh: the choice of torch, and the versions that requirements.txt, pyproject.toml and uv.lock name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.conftest import REPOSITORY

PROJECT = (REPOSITORY / "pyproject.toml").read_text()
PINS = {
    requirement.name: requirement
    for line in (REPOSITORY / "requirements.txt").read_text().splitlines()
    if (text := line.split("#")[0].strip())
    and (requirement := Requirement(text))
    and (requirement.marker is None or requirement.marker.evaluate())
}


def ranges() -> dict[str, Requirement]:
    """The requirements of `[project] dependencies` (Python 3.10 has no parser for TOML)."""
    block = re.search(r"^dependencies = \[\n(.*?)^\]", PROJECT, re.DOTALL | re.MULTILINE)[1]
    return {requirement.name: requirement for requirement in map(Requirement, re.findall(r'"(.+?)"', block))}


def pinned_version(name: str) -> str:
    return str(PINS[name].specifier).removeprefix("==")


def test_every_pinned_version_is_inside_its_tested_range():
    only_to_build = {"setuptools", "wheel"}
    assert set(ranges()) == set(PINS) - only_to_build
    for name, requirement in ranges().items():
        assert requirement.specifier.contains(pinned_version(name)), f"{name}: change the range in pyproject.toml"


def test_uv_lock_has_the_pinned_versions():
    locked = set(re.findall(r'^name = "(.+?)"\nversion = "(.+?)"', (REPOSITORY / "uv.lock").read_text(), re.MULTILINE))
    assert locked
    assert {(name, pinned_version(name)) for name in ranges()} <= locked, "see .github/CONTRIBUTING.md: uv lock"


def test_uv_accepts_the_lock():
    uv = shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    done = subprocess.run([uv, "lock", "--check"], cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    if re.search("error sending request|dns error|Connect", done.stderr):
        pytest.skip(f"no package index is reachable: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def setup(venv: Path, **chosen: str) -> subprocess.CompletedProcess:
    """setup.sh, given the suite's packages as a cluster's torch module gives its own: through PYTHONPATH."""
    ours = ("DEEPSPORTS_", "VIRTUAL_ENV")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env["DEEPSPORTS_PYTHONPATH"] = sysconfig.get_path("purelib")
    env["PATH"] = ":".join(
        folder for folder in os.environ["PATH"].split(":") if not Path(folder, "activate").is_file()
    )  # without the suite's virtual environment
    env |= {"DEEPSPORTS_VENV": str(venv), **chosen}
    command = ["bash", str(REPOSITORY / "job_files" / "setup.sh")]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_the_torch_of_a_module_is_used(tmp_path: Path):
    venv = tmp_path / "venv"
    done = setup(venv, DEEPSPORTS_TORCH="installed")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1 of 2: torch \S+ is there", done.stdout)
    assert "warning" not in done.stdout  # the suite's torch is inside the tested range
    assert not list(venv.glob("lib/*/site-packages/torch"))

    again = setup(venv, DEEPSPORTS_TORCH="installed")
    assert (again.returncode, again.stdout) == (0, "")
    other = setup(venv, DEEPSPORTS_TORCH="torch==2.12.1")
    assert other.returncode == 2
    assert "was made with other values of DEEPSPORTS_TORCH" in other.stderr


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"DEEPSPORTS_TORCH": "installed", "DEEPSPORTS_TORCH_INDEX": "/wheels"}, "unset one of them"),
        ({"DEEPSPORTS_TORCH": "installed", "DEEPSPORTS_PYTHONPATH": ""}, "cannot import torch: load its module"),
        ({"DEEPSPORTS_TORCH": "2.12.1"}, "give installed, or requirements such as torch==2.12.1"),
    ],
)
def test_a_choice_of_torch_that_cannot_work_is_one_sentence(tmp_path: Path, chosen: dict[str, str], sentence: str):
    done = setup(tmp_path / "venv", **chosen)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "venv").exists()
