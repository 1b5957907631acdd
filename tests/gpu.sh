#!/usr/bin/env bash
# Every check that only a GPU can make, on one card; each has a time limit:
#
#     bash tests/gpu.sh [--wheels FOLDER] [--out FOLDER] [--budget_s N] [--only NAME ...]
#     bash tests/gpu.sh --dry_run          # the same checks on the CPU, at tiny sizes
#
# Prints one table and writes it to FOLDER/gpu.md and FOLDER/gpu.json (gpu_results/ by default), after every check.
# Exit status: 0 if no check failed. --wheels names a folder made by tests/gpu_wheels.sh, for a machine without network:
# what cannot be imported is installed from it into a temporary folder.
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if started with sh or zsh
set -euo pipefail
started="$(date +%s)"
unset CDPATH
here="$PWD"
repository="$(cd "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"

wheels=""
arguments=()
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) [ $# -ge 2 ] || { echo "error: --wheels needs a folder" >&2; exit 2; }; wheels="$2"; shift 2 ;;
        --wheels=*) wheels="${1#*=}"; shift ;;
        *) arguments+=("$1"); shift ;;
    esac
done
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "error: $wheels is not a folder: make it with bash tests/gpu_wheels.sh $wheels" >&2; exit 2; }
    wheels="$(cd "$wheels" && pwd)"
fi
cd "$repository"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
if ! python -c 'import torch' 2>/dev/null && python3 -c 'import torch' 2>/dev/null; then
    mkdir "$work/bin" # only python3 has PyTorch here
    printf '#!/bin/sh\nexec "%s" "$@"\n' "$(command -v python3)" >"$work/bin/python"
    chmod +x "$work/bin/python"
    export PATH="$work/bin:$PATH"
fi
source job_files/environment.sh
python="$(python -c 'import sys; print(sys.executable)')"

importable() { "$python" -c "import importlib.util, sys; sys.exit(not importlib.util.find_spec('$1'))"; }
install() { "$python" -m pip install --quiet --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --upgrade --target "$work/site" "$@"; }

# Compile torchsort for the card here; without nvcc, or where that fails, its C++ part only. A wheel that was compiled
# on such a machine before (pip wheel --no-deps --no-build-isolation torchsort-*.tar.gz) saves the minute or two.
install_torchsort() {
    local wheel=("$wheels"/torchsort-*.whl)
    if [ -f "${wheel[0]}" ]; then install "${wheel[0]}"; return; fi
    local source=("$wheels"/torchsort-*.tar.gz) path="" folder folders shadow
    export MAX_JOBS="${MAX_JOBS:-$(nproc)}"
    TORCH_CUDA_ARCH_LIST="$("$python" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability() if torch.cuda.is_available() else "")')"
    [ -z "$TORCH_CUDA_ARCH_LIST" ] || export TORCH_CUDA_ARCH_LIST
    if [ -n "$TORCH_CUDA_ARCH_LIST" ] && install --no-build-isolation "${source[0]}" >"$work/torchsort.log" 2>&1; then return; fi
    [ ! -s "$work/torchsort.log" ] || { echo "torchsort was not compiled with CUDA:"; tail -n 15 "$work/torchsort.log"; }
    IFS=: read -ra folders <<<"$PATH"
    for folder in "${folders[@]}"; do
        if [ -e "$folder/nvcc" ]; then # a folder of links to all else in it
            shadow="$(mktemp -d -p "$work")"
            find "$folder" -mindepth 1 -maxdepth 1 ! -name nvcc -exec ln -s -t "$shadow" {} +
            folder="$shadow"
        fi
        path="$path${path:+:}$folder"
    done
    PATH="$path" install --no-build-isolation "${source[0]}"
}

if [ -n "$wheels" ]; then
    mkdir -p "$work/site"
    missing=()
    export PYTHONPATH="$work/site${PYTHONPATH:+:$PYTHONPATH}"
    for name in av simplejpeg submitit fvcore iopath yacs portalocker cloudpickle termcolor tabulate; do
        importable "$name" || missing+=("$wheels/$name"-*.whl)
    done
    [ ${#missing[@]} -eq 0 ] || install "${missing[@]}"
    importable torchsort || install_torchsort
    echo "Installed what was missing in $(($(date +%s) - started)) s"
fi

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-$(($(nproc) < 8 ? 1 : 4))}"
"$python" -m tests.gpu_checks --from "$here" --started "$started" --command "bash tests/gpu.sh ${wheels:+--wheels FOLDER }${arguments[*]:-}" ${arguments[@]+"${arguments[@]}"}
