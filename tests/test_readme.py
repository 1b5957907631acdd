"""The README files: their commands exist and run, and their links have targets."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.on_cluster import wait_for_end

README = REPOSITORY / "README.md"
README_FILES = [
    path
    for pattern in ("*.md", ".github/*.md", "*/README.md", "tests/*/README.md")
    for path in sorted(REPOSITORY.glob(pattern))
]
SMALL_CLUSTER = re.search(
    r"<!-- commands for the small cluster -->\n```bash\n(.*?)```\n<!-- end of commands",
    (REPOSITORY / "launch/README.md").read_text(),
    re.DOTALL,
)[1]

# as sbatch, launch.submit, launch.pipeline and launch.sweep name what they submitted; launch.status also shows others' jobs
JOB = r"(?:^Submitted batch job |^job +|submitted, job )(\d+)(?:$|,|_\d+ +/)"


def commands() -> list[list[str]]:
    """The words of each command in the README files' blocks."""
    found = []
    for path in README_FILES:
        for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL):
            for line in block.splitlines():
                found += [shlex.split(part, comments=True) for part in line.split(" && ")]
    return [words for words in found if words]


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a Markdown file."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_command_names_what_is_there():
    files = {word for words in commands() for word in words if re.fullmatch(r"[\w/]+\.(sh|job)", word)}
    assert len(files) >= 8
    assert not [file for file in files if not (REPOSITORY / file).is_file()]
    modules = {words[words.index("-m") + 1] for words in commands() if words[0] == "python" and "-m" in words}
    assert len(modules) >= 8
    assert not [module for module in modules if importlib.util.find_spec(module) is None]


def test_every_link_leads_to_a_file_and_a_heading():
    links = [
        (path, target)
        for path in README_FILES
        for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text())
        if "://" not in target
    ]
    assert len(links) >= 15
    for path, target in links:
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        assert file.exists(), f"{path.relative_to(REPOSITORY)}: {target}"
        assert not anchor or anchor in anchors(file), f"{path.relative_to(REPOSITORY)}: {target}"


def test_the_readme_is_one_page():
    assert len(README.read_text().splitlines()) <= 200


@pytest.mark.slurm
def test_the_commands_for_the_small_cluster_run_there(cluster: None, tmp_path: Path):
    ours = ("DEEPSPORTS_", "SBATCH_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    env |= {
        "DEEPSPORTS_VENV": sys.prefix,
        "DEEPSPORTS_SCRATCH": str(tmp_path / "my scratch"),
        "DEEPSPORTS_RUNS": str(tmp_path / "runs"),
    }
    done = subprocess.run(
        ["bash", "-ec", SMALL_CLUSTER], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=1200
    )
    jobs = sorted(set(re.findall(JOB, done.stdout, re.MULTILINE)), key=int)
    outputs = [path for job in jobs for path in (REPOSITORY / "slurm_logs").glob(f"*-{job}[._]*")]
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        # prepare, verify, by_sbatch, by_submitit, the pipeline's two that were left, the sweep
        assert len(jobs) == 7, done.stdout
        for job in jobs:
            states = wait_for_end(job)
            assert set(states) == {"COMPLETED"}, (job, done.stdout, [path.read_text() for path in outputs])
        for name in ("by_sbatch", "by_submitit", "by_pipeline"):
            assert (tmp_path / "runs" / name / "summary.json").is_file(), name
        assert "by_sbatch" in done.stdout  # launch.status
    finally:
        if jobs:
            subprocess.run(["scancel", *jobs], check=False)
        for path in outputs:
            path.unlink(missing_ok=True)
