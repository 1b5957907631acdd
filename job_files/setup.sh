#!/usr/bin/env bash
# Make the virtual environment and install the pinned requirements; a second call with nothing changed does nothing.
#
#     bash job_files/setup.sh [--tests]

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv="${DEEPSPORTS_VENV:-$PWD/.venv}"
python="${DEEPSPORTS_PYTHON:-python3}"
requirements=(requirements.txt)
[ "${1:-}" != "--tests" ] || requirements+=(tests/requirements.txt)

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
    echo "error: $python is $("$python" --version 2>&1), DeepSports needs Python 3.10 or newer: set DEEPSPORTS_PYTHON to one" >&2
    exit 2
fi
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
    echo "error: $python cannot make virtual environments: install its venv package (Debian/Ubuntu: apt-get install python3-venv)" >&2
    exit 2
fi

if [ ! -x "$venv/bin/python" ]; then
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

    echo "Installing the requirements (some minutes the first time)"
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" $(grep -oE '^(torch|setuptools|wheel)==[^ ;]+' requirements.txt)

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
fi
