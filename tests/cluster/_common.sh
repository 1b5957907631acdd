# shellcheck shell=bash disable=SC2034  # most of the names are for the scripts that source this
#
# Functions of start.sh, stop.sh and node.sh, which source this file.
#
# A cluster is a folder (DIR), a network interface of the host, lines in /etc/hosts, and processes. Each has a mark, so that
# stop.sh finds all of them after any crash:
#   folder      holds the file .deepsports-cluster
#   interface   is called "deepsports"
#   hosts lines end in "# deepsports-cluster DIR"
#   daemons     carry DEEPSPORTS_CLUSTER_DAEMON=DIR in their environment
#   jobs        live in a network namespace that is mounted on DIR/net/NODE

PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin # sudo, cron and CI leave these out; the daemons live there

DEFAULT_DIR=/tmp/deepsports-cluster
HOST_LINK=deepsports
SUBNET=10.77.0
HOST_ADDRESS=$SUBNET.1
MARK=deepsports-cluster

say() { printf '%s\n' "$*"; }

fail() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

need_root() { [ "$(id -u)" = 0 ] || fail "Network namespaces and device nodes need root: run this as root."; }

# Set DIR from the argument.
use_dir() {
    DIR=$(realpath -m -- "$1" 2>/dev/null) || true
    # Slurm's configuration cannot quote a space, and the path of a socket has at most 107 bytes.
    [[ $DIR =~ ^/[A-Za-z0-9._/+-]{1,60}$ ]] ||
        fail "--dir '$1' does not fit: give a path of at most 60 letters, digits and . _ + -."
    [ ! -e "$DIR" ] || [ -e "$DIR/.$MARK" ] || [ -z "$(ls -A "$DIR")" ] ||
        fail "$DIR holds something other than a cluster: name a new or an empty folder with --dir."
}

# Only one start or stop at a time, because names and addresses are the machine's. The lock is on a folder that exists on
# every machine, so that no file remains.
lock() {
    exec {LOCK}</run
    flock --timeout 120 "$LOCK" || fail "Another start.sh or stop.sh has been running for two minutes: wait for it."
}

node_address() { say "$SUBNET.$((10 + ${1#n}))"; }

# --- processes ---

# launch LOG COMMAND...: start a daemon that inherits nothing: not the terminal, not the pipe of our output (its reader would
# wait for the daemon), not the lock, no SLURM_ or PYTHON variable.
launch() {
    local log=$1
    shift
    # In a nested subshell, so that it is not our child: `wait` does not wait for it, and bash does not report its end.
    (daemon "$@" </dev/null >>"$log" 2>&1 &)
}

daemon() {
    local fd
    for fd in /proc/self/fd/*; do
        fd=${fd##*/}
        # The descriptor that listed this folder is already closed; closing it again is harmless.
        [ "$fd" -le 2 ] || eval "exec $fd>&-"
    done
    cd /
    exec setsid env -i PATH="$PATH" HOME=/root LANG=C.UTF-8 SLURM_CONF="$DIR/slurm.conf" \
        DEEPSPORTS_CLUSTER_DAEMON="$DIR" "$@"
}

daemon_pids() {
    grep -lszxF "DEEPSPORTS_CLUSTER_DAEMON=$DIR" /proc/[0-9]*/environ | cut -d/ -f3 || true
}

is_namespace() { [ -f "$1" ] && [ "$(stat -f -c %T "$1")" = nsfs ]; }

# All processes in the network namespace of a node: its slurmd and all processes of its jobs.
node_pids() {
    is_namespace "$DIR/net/$1" || return 0
    local inode link
    inode=$(stat -L -c %i "$DIR/net/$1")
    for link in /proc/[0-9]*/ns/net; do
        [ "$(readlink "$link" 2>/dev/null)" != "net:[$inode]" ] || say "$link" | cut -d/ -f3
    done
}

cluster_pids() {
    local file
    daemon_pids
    for file in "$DIR"/net/*; do
        node_pids "${file##*/}"
    done
}

# kill_all LISTER...: kill the processes that the lister prints, until it prints none (they may fork meanwhile).
kill_all() {
    local pids
    for _ in {1..100}; do
        pids=$("$@")
        [ -n "$pids" ] || return 0
        # shellcheck disable=SC2086  # a list of numbers
        kill -KILL $pids 2>/dev/null || true
        sleep 0.05
    done
    fail "These processes of the cluster could not be killed: ${pids//$'\n'/ }."
}

# --- nodes ---

in_node() {
    local node=$1
    shift
    nsenter --net="$DIR/net/$node" -- "$@"
}

# Not with `ip netns exec`, which mounts a new /sys in which slurmd does not find the cgroups.
start_slurmd() {
    # shellcheck disable=SC2016  # the inner shell's arguments
    launch "$DIR/log/$1.log" nsenter --net="$DIR/net/$1" unshare --uts \
        sh -c 'hostname "$1"; exec slurmd -f "$2" -N "$1"' sh "$1" "$DIR/slurm.conf"
}

# --- removal ---

# set_hosts [LINE...]: replace the lines of all clusters in /etc/hosts.
set_hosts() {
    local new=/etc/hosts.$MARK line
    cp -p /etc/hosts "$new"
    {
        # First, so that they take precedence, and because the file may not end with a newline.
        for line; do
            say "$line # $MARK $DIR"
        done
        sed "/# $MARK /d" /etc/hosts
    } >"$new"
    # A rename is atomic, but fails if /etc/hosts is a mount (containers).
    mv -f "$new" /etc/hosts 2>/dev/null || { cat "$new" >/etc/hosts && rm -f "$new"; }
}

# The folder of the cluster in /etc/hosts, if any.
dir_in_hosts() { sed -n "s/.*# $MARK //p" /etc/hosts | tail -n 1; }

remove_network() {
    local file
    for file in "$DIR"/net/*; do
        while is_namespace "$file"; do
            umount "$file"
        done
    done
    # A cluster in another folder may own the names and the interface.
    case $(dir_in_hosts) in
        "$DIR") set_hosts ;;
        "") ;;
        *) return 0 ;;
    esac
    ip link delete "$HOST_LINK" 2>/dev/null || true
}

stop_everything() {
    kill_all cluster_pids
    remove_network
}

remove_state() {
    [ -e "$DIR/.$MARK" ] || return 0 # not ours
    # Remove the mark last, so that an interrupted removal can be repeated.
    find "$DIR" -mindepth 1 -maxdepth 1 ! -name ".$MARK" -exec rm -rf {} +
    rm "$DIR/.$MARK"
    rmdir "$DIR"
}
