#!/usr/bin/env bash
# Make the virtual environment and install the pinned requirements. A second call with nothing changed does nothing.
#
#     bash job_files/setup.sh [--tests]
#
# DEEPSPORTS_TORCH and DEEPSPORTS_TORCH_INDEX (see job_files/environment.sh) choose another torch.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if sh or zsh runs this file
set -euo pipefail # stop at the first error
deepsports_setup=yes # environment.sh: there need not be a Python with the packages yet
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # also refuses Windows line endings
builtin cd "$DEEPSPORTS_HOME"

venv="$DEEPSPORTS_VENV"
python="${DEEPSPORTS_PYTHON:-python3}"
requirements=(requirements.txt)
[ "${1:-}" != "--tests" ] || requirements+=(tests/requirements.txt)

if ! command -v "$python" >/dev/null; then
    echo "error: $python is not on PATH: load your site's Python module in job_files/environment.sh, or set DEEPSPORTS_PYTHON to a Python of 3.10 or newer" >&2
    exit 2
fi
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is $("$python" --version 2>&1), DeepSports needs Python 3.10 or newer: set DEEPSPORTS_PYTHON to one" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python cannot make virtual environments: install its venv package (Debian/Ubuntu: apt-get install python3-venv)" >&2
    exit 2
fi

torch="${DEEPSPORTS_TORCH:-}"
index="${DEEPSPORTS_TORCH_INDEX:-}"
if [ "$torch" = installed ] && [ -n "$index" ]; then
    echo "error: DEEPSPORTS_TORCH=installed uses the installed torch, but DEEPSPORTS_TORCH_INDEX selects another one: unset one of them" >&2
    exit 2
fi
case " $torch" in
    " " | " installed" | *" torch"[=~!\<\>]*) ;;
    *)
        echo "error: DEEPSPORTS_TORCH is '$torch': give installed, or requirements such as torch==2.12.1 torchvision==0.27.1" >&2
        exit 2
        ;;
esac
# torch's version, or nothing; without the warnings that an import may print
torch_version() { "$1" -W ignore -c 'import torch; print(torch.__version__)' 2>/dev/null; }
if [ "$torch" = installed ] && ! torch_version "$python" >/dev/null; then
    echo "error: DEEPSPORTS_TORCH=installed, but $python cannot import torch: load its module in job_files/environment.sh (if the module sets PYTHONPATH, add: export DEEPSPORTS_PYTHONPATH=\"\$PYTHONPATH\")" >&2
    exit 2
fi

made=no
if [ ! -f "$venv/bin/activate" ]; then # the last file that venv writes
    made=yes
    echo "Making the virtual environment $venv"
    site=()
    [ "$torch" != installed ] || site=(--system-site-packages)
    "$python" -m venv "${site[@]}" "$venv"
fi
# Another torch in the same environment would leave packages behind that were compiled for the first one.
if [ "$torch|$index" != "$(cat "$venv/torch-settings" 2>/dev/null || echo "|")" ] && [ -n "$(torch_version "$venv/bin/python")" ] && [ "$made" = no ]; then
    echo "error: $venv was made with other values of DEEPSPORTS_TORCH and DEEPSPORTS_TORCH_INDEX: delete it and run bash job_files/setup.sh again" >&2
    exit 2
fi
echo "$torch|$index" >"$venv/torch-settings"

# The name of the stamp depends on everything that was requested. An installation with the tests' requirements also
# serves one without.
stamp_of() { echo "$venv/installed-$(cat "$@" - <<<"$torch|$index" | sha256sum | cut -c1-16)"; }

# Copy the output of a command. While the command prints nothing for 10 s, print how long it has run: in a log, pip is
# silent during a download, a compilation and the unpacking of wheels.
with_heartbeat() {
    local line="" part status
    while true; do
        status=0
        IFS= read -r -t 10 part || status=$?
        line="$line$part"
        if [ "$status" -gt 128 ]; then # no whole line within 10 s
            echo "   ... $((SECONDS - started)) s, $(du -sh "$venv" 2>/dev/null | cut -f1) in the environment"
            continue
        fi
        [ "$status" -eq 0 ] || [ -n "$line" ] || break
        printf '%s\n' "$line"
        line=""
        [ "$status" -eq 0 ] || break
    done
}

install() { # pip arguments
    # pip shows a progress bar for each download in a terminal
    if [ -t 1 ]; then
        "$venv/bin/python" -m pip install "$@"
    else
        "$venv/bin/python" -u -m pip install --progress-bar off "$@" 2>&1 | with_heartbeat
    fi
}

# Install torch (and torchvision, which must match it), chosen by DEEPSPORTS_TORCH and DEEPSPORTS_TORCH_INDEX.
install_torch() {
    local pinned chosen source
    mapfile -t pinned < <(command grep -oE '^(torch|torchvision)==[^ ;]+' requirements.txt)
    read -r -a chosen <<<"${torch:-${pinned[*]}}"
    if [ -n "$index" ]; then
        # First torch alone, from this index or folder only; its dependencies may come from the default index.
        source=(--index-url "$index")
        [ ! -d "$index" ] || source=(--no-index --find-links "$index")
        for requirement in "${chosen[@]}"; do
            case "$requirement" in torch[=~!\<\>]*) install --no-deps "${source[@]}" "$requirement" ;; esac
        done
        # torchvision also from this index if it has one: pip prefers +cpu and +cu126 to a version without a suffix
        source=(--extra-index-url "$index")
        [ ! -d "$index" ] || source=(--find-links "$index")
        install "${source[@]}" "${chosen[@]}"
    else
        install "${chosen[@]}"
    fi
}

stamp="$(stamp_of "${requirements[@]}")"
plain_stamp="$(stamp_of requirements.txt)"
if [ ! -f "$stamp" ]; then
    # torchsort is compiled: it needs a C++ compiler and Python's headers, and its own error message is long
    if ! command -v g++ >/dev/null && ! command -v c++ >/dev/null; then
        echo "error: no C++ compiler on PATH, torchsort is built from source: install g++ or load your site's gcc module" >&2
        exit 2
    fi
    if [ ! -f "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
        echo "error: Python.h is missing, torchsort is built from source: install the headers of $python (Debian/Ubuntu: apt-get install python3-dev)" >&2
        exit 2
    fi

    unset PIP_TARGET PIP_PREFIX PIP_QUIET
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    started=$SECONDS
    if [ "$torch" = installed ]; then
        echo "== Installing into $venv, 1 of 2: torch $(torch_version "$venv/bin/python") is there"
    else
        echo "== Installing into $venv, 1 of 2: torch, the largest part (some minutes the first time)"
        install_torch
    fi
    mapfile -t build < <(command grep -oE '^(setuptools|wheel)==[^ ;]+' requirements.txt)
    install "${build[@]}"

    # The tested range of torch is in pyproject.toml.
    "$venv/bin/python" -W ignore - <<'PYTHON'
import re, torch
from pip._vendor.packaging.specifiers import SpecifierSet
tested = re.search(r'"torch([^a-z"]+)"', open("pyproject.toml").read())[1]
if not SpecifierSet(tested).contains(torch.__version__, prereleases=True):
    print(f"warning: torch {torch.__version__} is outside of the tested range {tested}: run bash tests/run.sh --fast before you rely on it")
PYTHON

    echo "== Installing, 2 of 2: the others; torchsort is compiled, which takes a minute or two"
    # If nvcc is on PATH, torchsort compiles a CUDA extension, which fails with a CPU-only torch. So each folder of PATH
    # with an nvcc is replaced by a folder of links to its other files.
    build_path="$PATH"
    if "$venv/bin/python" -W ignore -c 'import sys, torch; sys.exit(torch.version.cuda is not None)'; then
        build_path=""
        while IFS= read -r -d : folder; do
            if [ -e "$folder/nvcc" ]; then
                shadow="$(mktemp -d "$venv/path-without-nvcc.XXXX")"
                find "$folder" -mindepth 1 -maxdepth 1 ! -name nvcc -exec ln -s -t "$shadow" {} +
                folder="$shadow"
            fi
            build_path="$build_path${build_path:+:}$folder"
        done <<<"$PATH:"
    fi
    export PATH="$venv/bin:$build_path"
    # Without a visible GPU (on a login node) torch cannot choose the architecture for nvcc. PTX for the oldest
    # architecture that this torch supports also runs on all newer ones.
    export TORCH_CUDA_ARCH_LIST="${TORCH_CUDA_ARCH_LIST-$("$venv/bin/python" -W ignore -c 'import torch
if torch.version.cuda and not torch.cuda.is_available():
    oldest = min(int(name[3:].rstrip("af")) for name in torch._C._cuda_getArchFlags().split() if name.startswith("sm_"))
    print(f"{oldest // 10}.{oldest % 10}+PTX")')}"
    [ -n "$TORCH_CUDA_ARCH_LIST" ] || unset TORCH_CUDA_ARCH_LIST
    if [ -n "$torch$index" ]; then
        # Keep the installed torch and torchvision. pip's cache may hold a torchsort that was compiled for another torch.
        "$venv/bin/python" -m pip list --format=freeze | command grep -E '^(torch|torchvision)==' >"$venv/constraints.txt"
        command grep -vE '^(torch|torchvision)==' requirements.txt >"$venv/requirements.txt"
        requirements[0]="$venv/requirements.txt"
        mapfile -t build < <(command grep -oE '^torchsort==[^ ;]+' requirements.txt)
        install --no-build-isolation --no-deps --no-cache-dir "${build[@]}"
        install --no-build-isolation --constraint "$venv/constraints.txt" "${requirements[@]/#/--requirement=}"
    else
        install --no-build-isolation "${requirements[@]/#/--requirement=}"
    fi
    rm -rf "$venv"/path-without-nvcc.*
    touch "$stamp" "$plain_stamp"
    echo "== Installed in $((SECONDS - started)) s"
fi
