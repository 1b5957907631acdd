"""Imports go one way: launch -> training -> data_preparation. The repository is clean for ruff and mypy."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY, run_python

ALLOWED = {
    "data_preparation": {"data_preparation"},
    "training": {"training", "data_preparation"},
    "launch": {"launch", "training", "data_preparation"},
}
COMMON = "data_preparation.common."
ERRORS = {COMMON + "errors"}
LEAVES = {
    "data_preparation/common/limits.py": set(),
    "data_preparation/common/errors.py": {COMMON + "limits"},
    "data_preparation/common/command_line.py": {COMMON + "errors", COMMON + "limits"},
    "data_preparation/common/files.py": ERRORS,
    "data_preparation/common/workers.py": ERRORS | {COMMON + "limits"},
    "data_preparation/layout.py": ERRORS
    | {"data_preparation.actions", "data_preparation.datasets", "data_preparation.similar_files"},
    "data_preparation/similar_files.py": set(),
    "data_preparation/actions.py": ERRORS,
    "data_preparation/file_types.py": ERRORS,
    "data_preparation/text_tables.py": ERRORS | {"data_preparation.file_types"},
    "data_preparation/pickles.py": ERRORS | {"data_preparation.file_types"},
    "training/plugins.py": {"data_preparation.datasets"},
    "training/config.py": ERRORS
    | {
        COMMON + "command_line",
        "data_preparation",
        "data_preparation.actions",
        "training",
        "training.data.plan",
        "training.plugins",
        "training.tasks",
    },
    "training/tasks/__init__.py": ERRORS | {"training.plugins", "training.tasks.base"},
    "training/tasks/base.py": {"data_preparation.actions", "training.html_report.content"},
    "training/html_report/content.py": set(),
    "training/data/facts.py": {"data_preparation.actions"},
    "training/data/plan.py": {"data_preparation.actions"},
    "training/data/batch.py": set(),
    "training/runtime/statuses.py": set(),
    "training/runtime/interruption.py": ERRORS | {"training.runtime.statuses"},
    "training/runtime/ranks.py": ERRORS,
    "training/runtime/run_progress.py": set(),
    "training/rows.py": set(),
    "training/losses.py": set(),
    "training/metrics.py": {"data_preparation.actions"},
}


def imported_modules(path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            modules.add(node.module)
    return modules


@pytest.mark.parametrize("package", ALLOWED)
def test_packages_import_only_lower_packages(package: str):
    for path in (REPOSITORY / package).rglob("*.py"):
        ours = {m for m in imported_modules(path) if m.split(".")[0] in ALLOWED}
        assert {m.split(".")[0] for m in ours} <= ALLOWED[package], path


def test_leaf_modules_import_only_what_is_listed():
    for name, allowed in LEAVES.items():
        ours = {m for m in imported_modules(REPOSITORY / name) if m.split(".")[0] in ALLOWED}
        assert ours <= allowed, name


def test_only_one_file_runs_slurms_commands_and_one_reads_its_variables():
    def holders(*needles: str) -> set[str]:
        paths = [p for package in ALLOWED for p in (REPOSITORY / package).rglob("*.py")]
        return {str(p.relative_to(REPOSITORY)) for p in paths if any(n in p.read_text() for n in needles)}

    assert holders('"squeue"', '"scontrol"', '"sacct"') == {"launch/slurm.py"}
    assert holders('"SLURM_') == {"training/runtime/ranks.py"}


PLOTS_AND_STATISTICS = {"jinja2", "matplotlib", "scipy", "sklearn"}
IMPORTED_LATE = {
    "training.train": PLOTS_AND_STATISTICS
    | {"av", "fvcore", "h5py", "submitit", "tensorboard", "timm", "torchmetrics", "torchsort", "torchvision", "wandb"},
    "training.evaluate": PLOTS_AND_STATISTICS | {"timm", "torchsort"},
    "training.compare": PLOTS_AND_STATISTICS | {"torch"},
    "training.report": PLOTS_AND_STATISTICS | {"torch"},
    "launch.job": PLOTS_AND_STATISTICS | {"numpy", "submitit", "torch"},
    "launch.submit": PLOTS_AND_STATISTICS | {"torch"},
    "launch.status": PLOTS_AND_STATISTICS | {"torch"},
    "launch.sweep": PLOTS_AND_STATISTICS | {"torch"},
    "data_preparation.verify": PLOTS_AND_STATISTICS | {"torch"},
}


@pytest.mark.parametrize("module", IMPORTED_LATE)
def test_start_up_imports_no_library_that_is_needed_late_or_never(module: str):
    """A training imports again at every restart, and each of these libraries takes up to a second."""
    imported = set(run_python("-c", f"import sys, {module}; print(*sys.modules)").stdout.split())
    assert module in imported
    assert not imported & IMPORTED_LATE[module]


def test_ruff_is_clean():
    for arguments in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *arguments, "."], cwd=REPOSITORY, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def test_mypy_finds_no_errors():
    done = subprocess.run([sys.executable, "-m", "mypy"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
