#!/usr/bin/env bash
# Make the virtual environment and install the pinned requirements; a second call with nothing changed does nothing.
#
#     bash job_files/setup.sh [--tests]
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # sh or zsh was asked to run this
set -euo pipefail # stop at the first error
deepsports_setup=yes # environment.sh: there need not be a Python with the packages yet
builtin source "$(dirname -- "${BASH_SOURCE[0]}")/environment.sh" # refuses Windows line ends, too
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

if [ ! -f "$venv/bin/activate" ]; then # the last file that venv writes
    echo "Making the virtual environment $venv"
    "$python" -m venv "$venv"
fi

# an installation is known by what was asked for; one with the tests' requirements serves one without
stamp_of() { echo "$venv/installed-$(cat "$@" | sha256sum | cut -c1-16)"; }
stamp="$(stamp_of "${requirements[@]}")"
if [ ! -f "$stamp" ]; then
    # torchsort's build compiles C++; it needs a compiler and Python's headers, and says so only at length
    if ! command -v g++ >/dev/null && ! command -v c++ >/dev/null; then
        echo "error: no C++ compiler on PATH, torchsort is built from source: install g++ or load your site's gcc module" >&2
        exit 2
    fi
    if [ ! -f "$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ]; then
        echo "error: Python.h is missing, torchsort is built from source: install the headers of $python (Debian/Ubuntu: apt-get install python3-dev)" >&2
        exit 2
    fi

    # pip shows a bar for each download in a terminal, and a line in a log
    unset PIP_TARGET PIP_PREFIX PIP_QUIET
    export PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1
    pip=("$venv/bin/python" -m pip install --progress-bar "$([ -t 1 ] && echo on || echo off)")
    started=$SECONDS
    echo "== Installing into $venv, 1 of 2: torch, the largest part (some minutes the first time)"
    mapfile -t first < <(command grep -oE '^(torch|setuptools|wheel)==[^ ;]+' requirements.txt)
    "${pip[@]}" "${first[@]}"
    echo "== Installing, 2 of 2: the others; torchsort is compiled, which takes a minute or two"

    # torchsort compiles a CUDA extension wherever it finds nvcc, which fails beside a CPU-only torch. There, a folder
    # of PATH that holds nvcc is replaced by links to all else in it.
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
    PATH="$venv/bin:$build_path" "${pip[@]}" --no-build-isolation "${requirements[@]/#/--requirement=}"
    rm -rf "$venv"/path-without-nvcc.*
    touch "$stamp" "$(stamp_of requirements.txt)"
    echo "== Installed in $((SECONDS - started)) s"
fi
