#!/usr/bin/env bash
# Stop and remove the cluster of start.sh. Does nothing if none runs.
set -euo pipefail
# shellcheck source=tests/cluster/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

USAGE="usage: stop.sh [--dir DIR]     (default: $DEFAULT_DIR)"

main() {
    local dir=$DEFAULT_DIR
    case $#:${1:-} in
        0:) ;;
        2:--dir) dir=$2 ;;
        1:-h | 1:--help) say "$USAGE" && exit 0 ;;
        *) fail "$USAGE" ;;
    esac
    need_root
    use_dir "$dir"
    lock
    stop_everything
    remove_state
}

main "$@"
