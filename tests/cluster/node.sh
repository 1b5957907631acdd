#!/usr/bin/env bash
# Make a node of the running cluster fail, or repair it. See README.md.
set -euo pipefail
# shellcheck source=tests/cluster/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

USAGE="usage: node.sh down|up|off|cut|join NODE [--dir DIR]
  down   kill only slurmd; the tasks continue         up     start slurmd again
  off    kill all processes of the node (then: up)
  cut    disconnect its network                       join   connect it again"

slurmd_pids() {
    local pid
    for pid in $(node_pids "$NODE"); do
        [ "$(cat "/proc/$pid/comm" 2>/dev/null)" != slurmd ] || say "$pid"
    done
}

up() {
    [ -z "$(slurmd_pids)" ] || fail "slurmd already runs on $NODE."
    start_slurmd "$NODE"
}

main() {
    case ${1:-} in -h | --help) say "$USAGE" && exit 0 ;; esac
    [ $# = 2 ] || { [ $# = 4 ] && [ "$3" = --dir ]; } || fail "$USAGE"
    local verb=$1
    NODE=$2
    need_root
    use_dir "${4:-$DEFAULT_DIR}"
    # The pattern excludes the switch, which has a namespace in the same folder.
    if ! [[ $NODE =~ ^n[0-9]+$ ]] || ! is_namespace "$DIR/net/$NODE"; then
        fail "No node '$NODE' runs in $DIR: start.sh starts them."
    fi
    case $verb in
        down) kill_all slurmd_pids ;;
        up) up ;;
        off) kill_all node_pids "$NODE" ;;
        cut) in_node switch ip link set "$NODE" down ;;
        join) in_node switch ip link set "$NODE" up ;;
        *) fail "Unknown verb '$verb'. $USAGE" ;;
    esac
}

main "$@"
