"""job_files/environment.sh and the scripts that source it, in different shells and environments."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from launch.snapshot import code_files
from tests.conftest import REPOSITORY

SCRIPTS = [
    "job_files/quickstart.sh",
    "job_files/setup.sh",
    "job_files/results_table.sh",
    "job_files/aiconnect.sh",
    "job_files/quickstart_config.sh",
    "job_files/small_cpu_config.sh",
    "model_train_config.sh",
    "data_preparation/download_videos.sh",
]
SOURCE = "source job_files/environment.sh"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The scripts of a clone in a folder with an unusual name, and the virtual environment of the tests."""
    folder = tmp_path / "my dives ü"
    (folder / "data_preparation").mkdir(parents=True)
    shutil.copytree(REPOSITORY / "job_files", folder / "job_files")
    for script in SCRIPTS:
        shutil.copy(REPOSITORY / script, folder / script)
    (folder / ".venv").symlink_to(sys.prefix)
    return folder


def skip_without(program: str) -> None:
    if not shutil.which(program):
        pytest.skip(f"{program} is not on this machine")


def shell(
    text: str, folder: Path, *, program: str = "bash", env: dict[str, str | None] | None = None
) -> subprocess.CompletedProcess:
    """Run a line in a shell without the variables of this project, Slurm and Python, and without those that are None in `env`."""
    skip_without(program)
    ours = ("DEEPSPORTS_", "SLURM_", "SBATCH_", "PYTHON", "VIRTUAL_ENV", "SCRATCH", "CONDA_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    clean["PATH"] = ":".join(part for part in clean["PATH"].split(":") if not part.startswith(sys.prefix))
    merged = {name: value for name, value in {**clean, **(env or {})}.items() if value is not None}
    return subprocess.run([program, "-c", text], cwd=folder, env=merged, capture_output=True, text=True, timeout=120)


def one_sentence(done: subprocess.CompletedProcess) -> str:
    """The only line of a command's error."""
    assert done.returncode == 2, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.parametrize(
    ("program", "before"),
    [
        ("bash", ""),
        ("bash", "set -euo pipefail; set -o noclobber; IFS=/_;"),
        ("bash", "cd() { echo moved; }; source() { echo no; };"),
        ("zsh", ""),
        ("zsh", "set -eu; setopt autopushd; chpwd() { echo moved };"),
    ],
)
def test_the_repository_is_found_from_every_shell(checkout: Path, program: str, before: str):
    for folder, file in ((checkout, "job_files/environment.sh"), (checkout / "job_files", "./environment.sh")):
        done = shell(f'{before} builtin source {file}; echo "$DEEPSPORTS_HOME"', folder, program=program)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{checkout}\n", "")


def test_cdpath_does_not_change_the_repository(checkout: Path, tmp_path: Path):
    (tmp_path / "decoy" / "job_files").mkdir(parents=True)
    done = shell(f'{SOURCE}; echo "$DEEPSPORTS_HOME"', checkout, env={"CDPATH": str(tmp_path / "decoy")})
    assert done.stdout == f"{checkout}\n"


@pytest.mark.parametrize("program", ["dash", "ksh", "busybox"])
def test_other_shells_get_an_error(checkout: Path, program: str):
    skip_without(program)
    command = ". job_files/environment.sh"
    done = shell(f"busybox ash -c '{command}'" if program == "busybox" else command, checkout, program="bash" if program == "busybox" else program)  # fmt: skip
    assert "type bash or zsh first" in one_sentence(done)


def test_fish_shows_the_fix(checkout: Path):
    assert "type bash or zsh first" in shell(SOURCE, checkout, program="fish").stderr


def test_a_file_to_source_cannot_be_run(checkout: Path):
    assert "so source it" in one_sentence(shell("bash job_files/environment.sh", checkout))


@pytest.mark.parametrize("program", ["sh", "zsh", "bash"])
def test_flag_files_run_in_all_shells(checkout: Path, program: str):
    skip_without(program)
    done = shell(f"{program} model_train_config.sh --print_flags", checkout)
    assert done.returncode == 0, done
    assert f"{checkout}/runs" in done.stdout.split("\0")


def test_a_flag_file_may_be_outside_of_the_repository(checkout: Path, tmp_path: Path):
    shutil.copy(checkout / "model_train_config.sh", tmp_path / "mine.sh")
    done = shell(f"{SOURCE}; bash {tmp_path}/mine.sh --print_flags", checkout)
    assert done.returncode == 0
    assert f"{checkout}/runs" in done.stdout.split("\0")
    refused = shell(f"bash {tmp_path}/mine.sh --print_flags", checkout, env={"DEEPSPORTS_HOME": str(checkout), "DEEPSPORTS_RUNS": "$HOME"})  # fmt: skip
    assert refused.returncode == 2
    assert "DEEPSPORTS_RUNS is '$HOME'" in refused.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_clone_with_windows_line_ends_is_refused(checkout: Path, script: str):
    for file in checkout.rglob("*.sh"):
        file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))
    done = shell(f"bash {script}", checkout)
    assert done.returncode == 2
    assert "Windows line ends: convert the scripts" in done.stderr.splitlines()[-1]
    for file in checkout.rglob("*.sh"):
        if file.name != "with_flags.sh":
            file.write_bytes(file.read_bytes().replace(b"\r\n", b"\n"))
    assert "with_flags.sh has Windows line ends" in one_sentence(shell(f"bash {script}", checkout))


def test_git_keeps_the_line_ends_of_scripts():
    rules = (REPOSITORY / ".gitattributes").read_text().splitlines()
    assert {"*.sh text eol=lf", "*.job text eol=lf"} <= set(rules)


@pytest.mark.parametrize(
    ("value", "becomes"),
    [
        ("~/runs", "{home}/runs"),
        ("my runs", "{repository}/my runs"),
        ("", "{repository}/runs"),
        ("/tmp/a'b\"c`d`\\e 東", "/tmp/a'b\"c`d`\\e 東"),
        ("$SCRATCH/runs", None),
        ("~nobody/runs", None),
        ("/tmp/a\nb", None),
    ],
)
def test_a_path_variable_is_absolute_or_refused(checkout: Path, tmp_path: Path, value: str, becomes: str | None):
    env = {"DEEPSPORTS_RUNS": value, "HOME": str(tmp_path)}
    done = shell(f'{SOURCE} && printf %s "$DEEPSPORTS_RUNS"', checkout, env=env)
    if becomes is None:
        assert done.returncode == 2
        assert done.stderr.startswith("error: DEEPSPORTS_RUNS is '")
    else:
        assert done.stdout == becomes.format(home=tmp_path, repository=checkout), done


def test_the_folders_of_another_checkout_are_not_used(checkout: Path):
    other = {"DEEPSPORTS_HOME": "/other", "DEEPSPORTS_RUNS": "/other/runs", "DEEPSPORTS_VENV": "/other/.venv", "DEEPSPORTS_SCRATCH": "/chosen"}  # fmt: skip
    command = f'{SOURCE}; echo "$DEEPSPORTS_RUNS|$DEEPSPORTS_VENV|$DEEPSPORTS_SCRATCH"'
    assert shell(command, checkout, env=other).stdout == f"{checkout}/runs|{checkout}/.venv|/chosen\n"
    (checkout / "code.json").touch()  # a run's copy of the code
    assert shell(command, checkout, env={**other, "DEEPSPORTS_VENV": sys.prefix}).stdout.startswith("/other/runs|")


def test_other_packages_do_not_replace_those_of_the_environment(checkout: Path, tmp_path: Path):
    (tmp_path / "numpy").mkdir()
    (tmp_path / "numpy" / "__init__.py").write_text("raise ImportError('another numpy')")
    (checkout / "data_preparation" / "__init__.py").touch()
    odd = {"PYTHONHOME": "/nowhere", "PYTHONSAFEPATH": "1", "PYTHONOPTIMIZE": "2", "PYTHONINSPECT": "1", "PYTHONIOENCODING": "ascii"}  # fmt: skip
    command = f"{SOURCE}; python -c 'import numpy, data_preparation; print(numpy.__doc__ is not None, \"ü\")'"
    done = shell(command, checkout, env={**odd, "PYTHONPATH": str(tmp_path)})
    assert done.stdout == "True ü\n", done
    assert f"warning: PYTHONPATH ({tmp_path}) is ignored" in done.stderr
    done = shell(f"{SOURCE}; echo $PYTHONPATH", checkout, env={"DEEPSPORTS_PYTHONPATH": "/mine"})
    assert (done.stdout, done.stderr) == ("/mine\n", "")
    hijacked = shell("python() { echo no; }; export -f python; bash -c 'source job_files/environment.sh; type -t python'", checkout)  # fmt: skip
    assert hijacked.stdout == "file\n"


def test_a_python_that_cannot_run_is_refused(checkout: Path, tmp_path: Path):
    (checkout / ".venv").unlink()
    nothing = tmp_path / "bin"
    nothing.mkdir()
    (nothing / "python").write_text("#!/bin/sh\nexit 1\n")
    (nothing / "python").chmod(0o755)
    env = {"PATH": f"{nothing}:/usr/bin:/bin"}
    assert "run bash job_files/setup.sh" in one_sentence(shell(SOURCE, checkout, env=env))
    assert "run bash job_files/setup.sh" in one_sentence(shell("bash model_train_config.sh", checkout, env=env))
    moved = checkout / ".venv" / "bin"
    moved.mkdir(parents=True)
    (moved / "activate").write_text("VIRTUAL_ENV=/its/old/place\n")
    (moved / "python").symlink_to("/no/longer/there")
    assert "load the module that created it" in one_sentence(shell(SOURCE, checkout, env=env))
    (moved / "python").unlink()
    (moved / "python").symlink_to(sys.executable)
    assert "was moved after it was created (as /its/old/place)" in one_sentence(shell(SOURCE, checkout, env=env))


def test_a_container_without_user_names(checkout: Path, tmp_path: Path):
    """No home, no user name, no passwd entry: id knows only the number."""
    program = tmp_path / "id"
    program.write_text('#!/bin/sh\n[ "$1" = -u ] && echo 54321 && exit\necho "id: cannot find name" >&2; exit 1\n')
    program.chmod(0o755)
    env = {"HOME": None, "USER": None, "LOGNAME": None, "TMPDIR": "/nowhere", "PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = shell(f'set -eu; {SOURCE}; echo "$USER $LOGNAME $HOME"', checkout, env=env)
    assert (done.stdout, done.stderr) == (f"54321 54321 {pwd.getpwuid(os.getuid()).pw_dir}\n", "")


def test_a_job_gives_srun_what_it_needs(checkout: Path):
    outer = {"SLURM_JOB_ID": "7", "SLURM_EXPORT_ENV": "NONE", "SLURM_MEM_PER_CPU": "300", "SLURM_MEM_PER_NODE": "1024", "SLURM_CPU_BIND": "mask_cpu:0x1"}  # fmt: skip
    done = shell(f"{SOURCE}; env | grep ^SLURM_ | sort", checkout, env=outer)
    assert done.stdout.split() == ["SLURM_EXPORT_ENV=ALL", "SLURM_JOB_ID=7"]
    alone = shell(f"{SOURCE}; env | grep ^SLURM_MEM", checkout, env={"SLURM_JOB_ID": "7", "SLURM_MEM_PER_NODE": "1024"})
    assert alone.stdout.split() == ["SLURM_MEM_PER_NODE=1024"]


def test_the_folder_of_the_job_files_output_exists():
    """Slurm does not create it, and without it a job fails silently."""
    for file in (REPOSITORY / "job_files").glob("*.job"):
        (folder,) = re.findall(r"^#SBATCH --output=(\w+)/%x-%\S+\.out$", file.read_text(), re.MULTILINE)
        assert (REPOSITORY / folder / ".gitignore").is_file()
        assert not any(path.parts[0] == folder for path in code_files())
