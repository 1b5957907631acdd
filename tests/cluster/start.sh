#!/usr/bin/env bash
# Start a real Slurm cluster of several nodes on this machine. See README.md.
set -euo pipefail
# shellcheck source=tests/cluster/_common.sh
source "$(dirname "${BASH_SOURCE[0]}")/_common.sh"

USAGE="usage: start.sh [--nodes N] [--dir DIR]     (default: 2 nodes in $DEFAULT_DIR)"
CPUS=2
GPUS=2
TIMEOUT=180 # seconds for each step; all together take four on two idle cores
CTLD_PORT=16817 SLURMD_PORT=16818 DBD_PORT=16819 # not the standard ones, which another Slurm on this machine may use

parse() {
    local nodes=2 dir=$DEFAULT_DIR
    while [ $# -gt 0 ]; do
        case $1 in
            --nodes) nodes=${2:-} ;;
            --dir) dir=${2:-} ;;
            -h | --help) say "$USAGE" && exit 0 ;;
            *) fail "Unknown argument '$1'. $USAGE" ;;
        esac
        shift 2 || fail "$1 needs a value. $USAGE"
    done
    [[ $nodes =~ ^([1-9]|1[0-6])$ ]] || fail "--nodes '$nodes' does not fit: give a number from 1 to 16."
    use_dir "$dir"
    NODES=()
    local i
    for ((i = 1; i <= nodes; i++)); do
        NODES+=("n$i")
    done
    ALL_NODES="n[1-$nodes]"
}

check_tools() {
    local tool
    for tool in slurmctld slurmd slurmdbd sacctmgr munged mariadbd mariadb-install-db ip nsenter unshare setsid flock; do
        command -v "$tool" >/dev/null || fail "$tool is missing: run $(dirname "$0")/install.sh first."
    done
}

check_other_cluster() {
    local other
    other=$(dir_in_hosts)
    [ -z "$other" ] || [ "$other" = "$DIR" ] ||
        fail "A cluster in $other uses the same names and addresses: stop it first with stop.sh --dir $other."
}

# Called after the leftovers of earlier clusters are removed: what it finds belongs to something else.
check_names_free() {
    local node
    [ -z "$(ip -4 route show root "$SUBNET.0/24"; ip -4 address show to "$SUBNET.0/24")" ] ||
        fail "This machine already has a network $SUBNET.0/24, which the cluster needs."
    for node in "${NODES[@]}"; do
        ! grep -qE "^[^#]*[[:space:]]$node([[:space:]]|\$)" /etc/hosts ||
            fail "/etc/hosts already has a host $node, a name that the cluster needs."
    done
}

make_folders() {
    mkdir -p "$DIR"
    [ -O "$DIR" ] || fail "$DIR belongs to another user: name another folder with --dir."
    touch "$DIR/.$MARK"
    mkdir "$DIR"/{net,log,tmp,dev,munge,db,ctld,spool}
    mkdir "${NODES[@]/#/$DIR/spool/}"
}

# --- network ---
# host (10.77.0.1) --- switch --- n1 (10.77.0.11), n2 (10.77.0.12), ...
# The bridge has its own namespace: in that of the host, the host's firewall would see its packets, and with Docker installed
# it drops them.

make_namespace() {
    touch "$DIR/net/$1"
    unshare --net="$DIR/net/$1" ip link set lo up ||
        fail "No network namespace could be made: a container needs --privileged for this."
}

# plug LINK PORT [NAMESPACE]: connect LINK, in the namespace (default: the host's), to PORT of the switch.
plug() {
    local link=$1 port=$2 namespace=${3:-}
    ip link add "$link" ${namespace:+netns "$DIR/net/$namespace"} type veth peer name "$port" netns "$DIR/net/switch"
    in_node switch ip link set "$port" master bridge up
}

make_network() {
    make_namespace switch
    in_node switch ip link add bridge type bridge
    in_node switch ip link set bridge up
    plug "$HOST_LINK" host
    ip address add "$HOST_ADDRESS/24" dev "$HOST_LINK"
    ip link set "$HOST_LINK" up
    local node
    for node in "${NODES[@]}"; do
        make_namespace "$node"
        plug eth0 "$node" "$node"
        in_node "$node" ip address add "$(node_address "$node")/24" dev eth0
        in_node "$node" ip link set eth0 up
    done
}

hosts_lines() {
    local node
    for node in "${NODES[@]}"; do
        say "$(node_address "$node") $node"
    done
}

# --- configuration ---

# Leave a third of the memory to the machine; no test needs more than 8 GB per node.
node_memory() {
    local total share
    total=$(awk '$1 == "MemTotal:" {print int($2 / 1024)}' /proc/meminfo)
    share=$((total * 2 / 3 / ${#NODES[@]}))
    say $((share < 8000 ? share : 8000))
}

node_lines() {
    local node
    for node in "${NODES[@]}"; do
        say "NodeName=$node NodeHostname=$node NodeAddr=$(node_address "$node") CPUs=$CPUS RealMemory=$1 Gres=gpu:$GPUS"
    done
}

write_slurm_conf() {
    local memory
    memory=$(node_memory)
    cat >"$DIR/slurm.conf" <<END
ClusterName=deepsports
SlurmctldHost=$(uname -n)($HOST_ADDRESS)
SlurmctldPort=$CTLD_PORT
SlurmdPort=$SLURMD_PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
# A requeued job waits until the credential of its last start has expired, 120 s by default. A busy machine may need
# longer than 10 s to start a job with its credential.
AuthInfo=socket=$DIR/munge/socket,cred_expire=30
MpiDefault=none
MailProg=/bin/true

StateSaveLocation=$DIR/ctld
SlurmdSpoolDir=$DIR/spool/%n
SlurmctldPidFile=$DIR/ctld.pid
SlurmdPidFile=$DIR/spool/%n.pid
SlurmctldLogFile=$DIR/log/slurmctld.log
SlurmdLogFile=$DIR/log/%n.log

# Without cgroups: containers may have none.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$HOST_ADDRESS
AccountingStoragePort=$DBD_PORT
# With munge, this "password" is the path of its socket.
AccountingStoragePass=$DIR/munge/socket
AccountingStorageTRES=gres/gpu
# An unknown --account is refused at submission, as on most clusters.
AccountingStorageEnforce=associations
AccountingStoreFlags=job_comment

SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,bf_resolution=1
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=$((memory / CPUS))
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal

# On a busy machine a rank may need some seconds to save, and a slurmd to answer.
KillWait=30
SlurmdTimeout=60
# Tests read finished jobs with squeue and scontrol.
MinJobAge=3600
InactiveLimit=0
ReturnToService=2

GresTypes=gpu
# Otherwise a node could not have two CPUs on a machine with one core.
SlurmdParameters=config_overrides
$(node_lines "$memory")
PartitionName=gpu Nodes=$ALL_NODES Default=YES PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=$ALL_NODES PriorityTier=10
END
}

write_configuration() {
    write_slurm_conf
    # Slurm finds these beside slurm.conf.
    say "Name=gpu File=$DIR/dev/gpu[0-$((GPUS - 1))]" >"$DIR/gres.conf"
    # slurmd always loads a cgroup plugin; this one requires nothing. If it had to detect the version, slurmd would fail on
    # machines that mix both, and would need systemd for version 2.
    say "CgroupPlugin=cgroup/v1" >"$DIR/cgroup.conf"
    # slurmdbd requires a file that only its user can read.
    install -m 600 /dev/stdin "$DIR/slurmdbd.conf" <<END
DbdHost=localhost
DbdAddr=$HOST_ADDRESS
DbdPort=$DBD_PORT
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$DIR/munge/socket
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm
LogFile=$DIR/log/slurmdbd.log
PidFile=$DIR/slurmdbd.pid
END
    say "export SLURM_CONF=$DIR/slurm.conf" >"$DIR/env.sh"
}

# slurmd accepts only character devices, and does not open them: these are like /dev/null.
make_gpus() {
    local i
    for ((i = 0; i < GPUS; i++)); do
        mknod "$DIR/dev/gpu$i" c 1 3 || fail "No device node could be made in $DIR: a container needs --privileged for this."
    done
}

# --- daemons ---

# wait_for WHAT LOG COMMAND...: wait until the command succeeds.
wait_for() {
    local what=$1 log=$2 end=$((SECONDS + TIMEOUT))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$end" ] || fail "Waited $TIMEOUT s for $what: read $DIR/log/$log."
        sleep 0.1
    done
}

# If the start fails, stop everything, but keep the logs.
on_early_end() {
    wait # for mariadb-install-db, which would continue after everything is stopped
    stop_everything
}

start_munge() {
    local munge=$DIR/munge
    head -c 128 /dev/urandom | install -m 400 /dev/stdin "$munge/key"
    # --force: munged refuses a socket in a folder that other users cannot enter, such as the temporary folder of a test.
    launch "$DIR/log/munged.log" munged --force --foreground --key-file="$munge/key" --socket="$munge/socket" \
        --pid-file="$munge/pid" --log-file="$DIR/log/munged.log" --seed-file="$munge/seed"
}

# The database is temporary, so it need not wait for the disk.
DB_OPTIONS=(--no-defaults --user=root --skip-networking --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0
    --innodb-log-file-size=16M --innodb-buffer-pool-size=64M --innodb-lock-wait-timeout=900)

start_database() {
    # With the mark of a daemon, so that stop.sh finds it if this script is killed.
    DEEPSPORTS_CLUSTER_DAEMON=$DIR mariadb-install-db --no-defaults --user=root --datadir="$DIR/db" \
        --skip-test-db --skip-name-resolve --auth-root-authentication-method=socket \
        >"$DIR/log/mariadb.log" 2>&1 </dev/null ||
        fail "The database could not be made: read $DIR/log/mariadb.log."
    launch "$DIR/log/mariadb.log" mariadbd "${DB_OPTIONS[@]}" --datadir="$DIR/db" --socket="$DIR/db/socket" \
        --pid-file="$DIR/db/pid" --tmpdir="$DIR/tmp"
}

# With a socket of the shell, because Slurm's clients wait long between two attempts.
answers() { : <"/dev/tcp/$HOST_ADDRESS/$1"; }

start_accounting() {
    wait_for "munged to answer" munged.log test -S "$DIR/munge/socket"
    wait_for "the database to answer" mariadb.log mariadb-admin --no-defaults --socket="$DIR/db/socket" ping
    # slurmdbd has no setting for the socket, but its MySQL library reads this variable.
    launch "$DIR/log/slurmdbd.log" env MYSQL_UNIX_PORT="$DIR/db/socket" slurmdbd
    wait_for "slurmdbd to answer" slurmdbd.log answers "$DBD_PORT"
    wait_for "sacctmgr to answer" slurmdbd.log sacctmgr -n list cluster
    make_accounts >"$DIR/log/sacctmgr.log" 2>&1 || fail "The accounts could not be made: read $DIR/log/sacctmgr.log."
}

# slurmctld does not start before its cluster is in the database.
make_accounts() {
    sacctmgr -i add cluster deepsports &&
        sacctmgr -i add account deepsports Description=deepsports Organization=deepsports &&
        sacctmgr -i add user root Account=deepsports &&
        sacctmgr -i modify user where name=root set DefaultAccount=deepsports
}

all_idle() { [ "$(sinfo -h -p gpu -N -o %t | sort | uniq -c | xargs)" = "${#NODES[@]} idle" ]; }

start_slurm() {
    # An absolute path, because slurmctld changes its folder.
    launch "$DIR/log/slurmctld.log" slurmctld -f "$DIR/slurm.conf"
    local node
    for node in "${NODES[@]}"; do
        start_slurmd "$node"
    done
    wait_for "slurmctld to answer" slurmctld.log answers "$CTLD_PORT"
    wait_for "all nodes to be idle" "slurmctld.log, then $DIR/log/n1.log" all_idle
}

explain() {
    cat <<END
${#NODES[@]} nodes with $CPUS CPUs and $GPUS GPUs each are idle after $SECONDS s.
  export SLURM_CONF=$DIR/slurm.conf     # or: source $DIR/env.sh
  sinfo
  sbatch --gpus-per-node=1 --wrap 'srun hostname'
  $(dirname "$0")/stop.sh$([ "$DIR" = "$DEFAULT_DIR" ] || say " --dir $DIR")
END
}

main() {
    parse "$@"
    need_root
    check_tools
    umask 022
    unset "${!SLURM_@}" "${!SBATCH_@}" # those of an enclosing job or of another cluster
    lock
    check_other_cluster
    stop_everything
    remove_state
    check_names_free
    export SLURM_CONF=$DIR/slurm.conf

    trap on_early_end EXIT
    trap 'fail "Interrupted: everything that was started is stopped."' INT TERM HUP
    make_folders
    start_munge
    start_database &
    local database=$! lines
    mapfile -t lines < <(hosts_lines)
    set_hosts "${lines[@]}" # before the network: the lines record which cluster owns it
    make_network
    make_gpus
    write_configuration
    wait "$database"
    start_accounting
    start_slurm
    trap - EXIT
    explain
}

main "$@"
