#!/usr/bin/env bash
# Download what tests/gpu.sh --wheels needs on a machine without network that already has PyTorch, timm, numpy, scipy,
# scikit-learn and matplotlib. Run it where pip reaches a package index:
#
#     bash tests/gpu_wheels.sh FOLDER [PYTHON_VERSION]        # the version of the other machine's Python, 3.12 by default
#
[ -n "${BASH_VERSION:-}" ] || exec bash "$0" "$@" # if started with sh or zsh
set -euo pipefail
unset CDPATH
repository="$(cd "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
[ $# -ge 1 ] || { echo "usage: bash tests/gpu_wheels.sh FOLDER [PYTHON_VERSION]" >&2; exit 2; }
mkdir -p "$1"
folder="$(cd "$1" && pwd)"
version="${2:-3.12}"
source "$repository/job_files/environment.sh"

# The requirement of a package with the version that requirements.txt pins.
pinned() { grep -oE "^$1==[^ ;]+" "$repository/requirements.txt"; }

platforms=()
for platform in manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux_2_24_x86_64 manylinux_2_17_x86_64 manylinux2014_x86_64 manylinux_2_12_x86_64 manylinux2010_x86_64 manylinux_2_5_x86_64 manylinux1_x86_64; do
    platforms+=(--platform "$platform")
done
python -m pip download --quiet --no-deps --only-binary=:all: --python-version "$version" --implementation cp "${platforms[@]}" \
    --dest "$folder" "$(pinned av)" "$(pinned simplejpeg)" "$(pinned submitit)" yacs portalocker cloudpickle termcolor tabulate
# source distributions: fvcore and iopath are pure Python, torchsort is compiled where it is used
python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir "$folder" "$(pinned fvcore)" iopath
# pip asks torchsort's setup.py for its version, and that fails where it finds an nvcc and torch is built without CUDA
python="$(python -c 'import sys; print(sys.executable)')" path=""
IFS=: read -ra folders <<<"$PATH"
for part in "${folders[@]}"; do [ -x "$part/nvcc" ] || path="$path${path:+:}$part"; done
PATH="$path" "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary=:all: --dest "$folder" "$(pinned torchsort)"
du -sh "$folder"
