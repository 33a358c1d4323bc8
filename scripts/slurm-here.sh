#!/bin/bash
# A real Slurm on this machine: one controller and two nodes, node1 and node2, which are two daemons on it.
#
#     scripts/slurm-here.sh start FOLDER    # then: export SLURM_CONF=FOLDER/slurm.conf
#     scripts/slurm-here.sh stop FOLDER
#
# It needs root, and `apt-get install slurm-wlm munge` (Debian, Ubuntu). FOLDER takes configuration, state, logs and the
# ids of the processes that were started, which `stop` ends; nothing else on the machine is touched but /etc/hosts,
# where node1 and node2 get an address, and munge's key, which is made where there is none. Both nodes say that they
# have four cores, whatever the machine has: this is for trying things, not for speed.
set -euo pipefail

usage() { sed -n '4,5s/^# *//p' "$0" >&2; exit 2; }
[ $# = 2 ] || usage
command=$1 folder=$(mkdir -p "$2" && cd "$2" && pwd)

stop() {
    for file in "$folder"/pids/*; do
        [ -e "$file" ] || continue
        kill "$(cat "$file")" 2>/dev/null || true
        rm -f "$file"
    done
}

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

configure() {
    cat > "$folder/slurm.conf" <<END
ClusterName=here
SlurmctldHost=$(hostname)(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmUser=root
AuthType=auth/munge
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/pids/slurmctld
SlurmdPidFile=$folder/pids/slurmd-%n
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
InactiveLimit=0
NodeName=node1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4 State=UNKNOWN
NodeName=node2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$(free_port) CPUs=4 State=UNKNOWN
PartitionName=here Nodes=node[1-2] Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
END
    # 22.05 and later look for control groups unless told not to; what is started here counts processes by itself
    echo "CgroupPlugin=cgroup/v1" > "$folder/cgroup.conf"
}

start() {
    for program in munged slurmctld slurmd sbatch; do
        command -v "$program" > /dev/null || { echo "no $program here; apt-get install slurm-wlm munge" >&2; exit 2; }
    done
    [ "$(id -u)" = 0 ] || { echo "it takes root to start Slurm's daemons" >&2; exit 2; }
    mkdir -p "$folder/state" "$folder/pids"
    grep -q '^127.0.0.1 node1 node2$' /etc/hosts || echo '127.0.0.1 node1 node2' >> /etc/hosts
    if ! munge -n > /dev/null 2>&1; then # one that runs already is as good
        install -d -o munge -g munge -m 0700 /etc/munge /var/lib/munge /var/log/munge
        install -d -o munge -g munge -m 0755 /run/munge
        [ -s /etc/munge/munge.key ] || (umask 077; head -c 1024 /dev/urandom > /etc/munge/munge.key)
        chown munge:munge /etc/munge/munge.key
        setpriv --reuid munge --regid munge --clear-groups munged
    fi
    configure
    export SLURM_CONF=$folder/slurm.conf
    slurmctld
    for node in node1 node2; do
        mkdir -p "$folder/spool-$node"
        slurmd -N "$node"
    done
    for _ in $(seq 100); do
        [ "$(sinfo --noheader --format=%T 2> /dev/null)" = idle ] && break
        sleep 0.2
    done
    sinfo >&2
    [ "$(sinfo --noheader --format=%T)" = idle ] || { echo "the nodes did not come up; see $folder/*.log" >&2; exit 1; }
    echo "export SLURM_CONF=$folder/slurm.conf"
}

case $command in
    start) start ;;
    stop) stop ;;
    *) usage ;;
esac
