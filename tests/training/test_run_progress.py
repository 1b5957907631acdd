"""progress.json: what is written is read again, files of other versions are read, damaged ones are refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from data_preparation.common.errors import UserError
from tests.conftest import run_python
from training.runtime.progress import Progress
from training.runtime.ranks import Ranks
from training.runtime.run_folder import RunFolder
from training.runtime.run_progress import RunProgress, seconds_left


def written_and_read(folder: Path, record: object) -> RunProgress | None:
    run = RunFolder(folder)
    run.progress_file.write_text(json.dumps(record))
    return run.progress()


def test_progress_is_written_and_passed_to_the_hook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    run, heard = RunFolder(tmp_path), []
    assert run.progress() is None
    progress = Progress(run, Ranks(), heard.append)
    progress.update(state="running", error=None, epoch=0, epochs=2, step=0, steps=10, best=math.nan)
    record = json.loads(run.progress_file.read_text())
    assert {name for name, value in record.items() if value is None} == {"job_id", "error", "eta_s", "best"}
    assert "seconds_per_step" not in record
    progress.update(step=5, seconds_per_step=2.0)
    progress.update(epoch=1, epoch_s=20.0, best_epoch=1, best=0.5)
    assert [each.eta_s for each in heard] == [None, 10.0, 20.0]
    assert run.progress() == heard[-1]
    assert heard[-1].seconds_per_step == 2.0
    assert heard[-1].updated >= heard[0].updated > 0
    with pytest.raises(TypeError):
        progress.update(sate="running")


def test_only_the_first_rank_reports(tmp_path: Path):
    Progress(RunFolder(tmp_path), Ranks(rank=1, world_size=2), None).update(state="running")
    assert not RunFolder(tmp_path).progress_file.exists()


def test_files_of_other_versions_are_read(tmp_path: Path):
    assert written_and_read(tmp_path, {"state": "failed", "updated": 3}) == RunProgress("failed", updated=3)
    newer = {"state": "running", "updated": 3.0, "steps": 7, "from_a_newer_version": [1], "val_spearman": None}
    assert written_and_read(tmp_path, newer) == RunProgress("running", updated=3.0, steps=7, metric="rho")
    first = {"state": "running", "updated": 3.0, "best_epoch": 2, "best_spearman": 0.5, "val_spearman": -1}
    assert written_and_read(tmp_path, first) == RunProgress(
        "running", best_epoch=2, metric="rho", best=0.5, val=-1, updated=3
    )


@pytest.mark.parametrize(
    "record",
    [[], 3, "x", {}, {"state": "running"}, {"state": None, "updated": 1.0}, {"state": 3, "updated": 1.0},
     {"state": "running", "updated": "now"}, {"state": "running", "updated": 1.0, "epoch": "3"},
     {"state": "running", "updated": 1.0, "best_spearman": [0.5]}],
)  # fmt: skip
def test_damaged_files_are_refused(tmp_path: Path, record: object):
    with pytest.raises(UserError, match=r"progress.json is damaged: delete it"):
        written_and_read(tmp_path, record)


def test_the_time_left_needs_a_step_or_an_epoch():
    assert seconds_left(RunProgress("failed")) is None
    assert seconds_left(RunProgress("running", epochs=1, steps=0)) is None
    assert seconds_left(RunProgress("finished", epochs=2, step=10, steps=10, seconds_per_step=1.0)) == 0


def test_reading_and_reporting_progress_imports_no_torch():
    code = "import sys, training.runtime.progress, launch.job; sys.exit('torch' in sys.modules)"
    assert run_python("-c", code, check=False).returncode == 0
