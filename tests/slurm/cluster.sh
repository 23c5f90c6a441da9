#!/usr/bin/env bash
# A SLURM cluster of one node with fake GPUs, on this machine, as root: what tests/slurm runs on.
#
#   cluster.sh packages   print the Debian packages that it needs
#   cluster.sh up         munge, slurmctld and slurmd (ACCOUNTING=1: mariadb and slurmdbd, too)
#   cluster.sh down       stop them, and remove the configuration
#   cluster.sh controller-down | controller-up     an outage of slurmctld alone; its jobs run on
#
# From the environment: GPUS=2, CPUS=4, MEMORY_MB=8000, ACCOUNTING=0. No systemd and no cgroups are needed. The
# configuration lies in /etc/slurm, where SLURM looks by itself: jobs lose the variable SLURM_CONF.
set -euo pipefail

GPUS=${GPUS:-2} CPUS=${CPUS:-4} MEMORY_MB=${MEMORY_MB:-8000} ACCOUNTING=${ACCOUNTING:-0}
ETC=/etc/slurm STATE=/run/moat-slurm LOGS=/var/log/moat-slurm NODE=$(hostname -s)
HOSTS_MARK="# of moat's tests/slurm/cluster.sh"

fail() {
  echo "cluster.sh: $*" >&2
  tail -n 15 "$LOGS"/*.log >&2 || true
  exit 1
}

# within SECONDS COMMAND...: repeat the command until it succeeds
within() {
  local tries=$(($1 * 10)); shift
  until "$@" >/dev/null 2>&1; do
    tries=$((tries - 1)); [ "$tries" -gt 0 ] || fail "waited in vain for: $*"
    sleep 0.1
  done
}

# daemon NAME COMMAND...: in the background, in a session of its own, its pid on record
daemon() {
  local name=$1; shift
  setsid "$@" >"$LOGS/$name.log" 2>&1 </dev/null &
  echo $! >"$STATE/$name.pid"
}

# Fake GPUs are character devices (copies of /dev/null): SLURM counts no others.
make_gpus() {
  local number
  for ((number = 0; number < GPUS; number++)); do
    [ -c "/dev/moat-gpu$number" ] || mknod "/dev/moat-gpu$number" c 1 3
    echo "NodeName=$NODE Name=gpu Type=fake File=/dev/moat-gpu$number"
  done >"$ETC/gres.conf"
}

configure() {
  make_gpus
  local storage="AccountingStorageType=accounting_storage/none"
  [ "$ACCOUNTING" = 0 ] || storage=$'AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1'
  cat >"$ETC/slurm.conf" <<EOF
ClusterName=moat
SlurmctldHost=$NODE(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
StateSaveLocation=$STATE/controller
SlurmdSpoolDir=$STATE/spool
SlurmctldPidFile=$STATE/slurmctld.own.pid
SlurmdPidFile=$STATE/slurmd.own.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
MailProg=/bin/true
ReturnToService=2
# The node may claim more than the machine has, and jobs' memory is not watched.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0,sched_min_interval=100000
SlurmctldTimeout=60
SlurmdTimeout=60
# Seconds that a job is given after SIGTERM to save what it has.
KillWait=20
# Finished jobs stay visible to squeue, on a slow machine as well.
MinJobAge=7200
# Jobs of "scavenge" make room for those of "gpu": stopped, queued again.
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
$storage
NodeName=$NODE NodeAddr=127.0.0.1 CPUs=$CPUS RealMemory=$MEMORY_MB Gres=gpu:fake:$GPUS State=UNKNOWN
PartitionName=cpu Nodes=$NODE Default=YES MaxTime=1440 PriorityTier=10 PreemptMode=OFF DefMemPerCPU=500
PartitionName=gpu Nodes=$NODE MaxTime=1440 PriorityTier=10 PreemptMode=OFF DefMemPerCPU=500
PartitionName=scavenge Nodes=$NODE MaxTime=1440 PriorityTier=1 PreemptMode=REQUEUE GraceTime=0 DefMemPerCPU=500
EOF
  # slurmd asks for cgroups although nothing here uses them, and ends where there are none.
  case $(slurmd -V) in
    *" 2"[0-2].* | *" 23.02"*) echo "CgroupPlugin=cgroup/v1" ;;
    *) echo "CgroupPlugin=disabled" ;;
  esac >"$ETC/cgroup.conf"
}

start_munge() {
  ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1 || return 0
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077 && head -c 128 /dev/urandom >/etc/munge/munge.key)
    chown munge:munge /etc/munge/munge.key
    touch "$STATE/own-munge-key"
  fi
  mkdir -p /run/munge
  chown munge:munge /run/munge
  rm -f /run/munge/munge.socket.2*
  daemon munged setpriv --reuid=munge --regid=munge --clear-groups /usr/sbin/munged --foreground
  within 15 sh -c 'munge -n | unmunge'
}

start_accounting() {
  mkdir -p /run/mysqld
  mariadb-install-db --user=mysql --datadir="$STATE/mysql" --skip-test-db >"$LOGS/mariadb-install.log" 2>&1
  chown mysql:mysql /run/mysqld
  daemon mariadbd /usr/sbin/mariadbd --no-defaults --user=mysql --datadir="$STATE/mysql" \
    --socket=/run/mysqld/mysqld.sock --skip-networking --innodb-lock-wait-timeout=900
  within 30 mariadb-admin --socket=/run/mysqld/mysqld.sock ping
  mariadb --socket=/run/mysqld/mysqld.sock -e "CREATE DATABASE slurm_acct_db;
    CREATE USER 'slurm'@'localhost' IDENTIFIED BY 'moat'; GRANT ALL ON slurm_acct_db.* TO 'slurm'@'localhost';"
  printf '%s\n' AuthType=auth/munge DbdHost=localhost DbdAddr=127.0.0.1 SlurmUser=root StorageUser=slurm \
    StorageType=accounting_storage/mysql StorageHost=localhost StoragePass=moat StorageLoc=slurm_acct_db \
    "PidFile=$STATE/slurmdbd.own.pid" >"$ETC/slurmdbd.conf"
  chmod 600 "$ETC/slurmdbd.conf"
  daemon slurmdbd /usr/sbin/slurmdbd -D
  within 60 sacctmgr -n show cluster
  sacctmgr -i add cluster moat >/dev/null
  sacctmgr -i add account lab Cluster=moat >/dev/null
  sacctmgr -i add user "$(id -un)" Account=lab Cluster=moat DefaultAccount=lab >/dev/null
}

start_controller() {
  daemon slurmctld /usr/sbin/slurmctld -D -i
  within 30 sh -c "scontrol ping | grep -q UP"
}

# stop NAME: the daemon on record
stop() {
  local pid tries=100
  pid=$(cat "$STATE/$1.pid" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || true
  while kill -0 "$pid" 2>/dev/null && [ "$tries" -gt 0 ]; do tries=$((tries - 1)); sleep 0.1; done
  kill -9 "$pid" 2>/dev/null || true
  rm "$STATE/$1.pid"
}

up() {
  [ "$(id -u)" = 0 ] || { echo "cluster.sh: must be root" >&2; exit 1; }
  [ ! -e "$ETC/slurm.conf" ] || { echo "cluster.sh: $ETC/slurm.conf is there already; not touched" >&2; exit 1; }
  mkdir -p "$ETC" "$LOGS" "$STATE/controller" "$STATE/spool"
  getent hosts "$NODE" >/dev/null || echo "127.0.0.1 $NODE $HOSTS_MARK" >>/etc/hosts
  configure
  start_munge
  [ "$ACCOUNTING" = 0 ] || start_accounting
  start_controller
  daemon slurmd /usr/sbin/slurmd -D -N "$NODE"
  within 30 sh -c "sinfo --noheader --Node --format=%t | grep -q '^idle'"
}

# What `up` started, by the pids on record, and what it wrote. Without the configuration's removal every later
# `snakemake` would wait ten seconds for a controller that is not there.
down() {
  local name
  timeout 20 scancel --user="$(id -un)" 2>/dev/null || true
  for name in slurmd slurmctld slurmdbd mariadbd munged; do stop "$name"; done
  [ ! -d "$STATE" ] || rm -f "$ETC"/{slurm,gres,cgroup,slurmdbd}.conf /dev/moat-gpu*
  [ ! -e "$STATE/own-munge-key" ] || rm -f /etc/munge/munge.key
  if grep -qF "$HOSTS_MARK" /etc/hosts; then
    # Written rather than replaced: in a container it may be mounted.
    grep -vF "$HOSTS_MARK" /etc/hosts >"$STATE.hosts" || true
    cat "$STATE.hosts" >/etc/hosts
    rm "$STATE.hosts"
  fi
  rm -rf "$STATE"
}

case "${1:-}" in
  packages) echo "slurmctld slurmd slurm-client munge$([ "$ACCOUNTING" = 0 ] || echo " slurmdbd mariadb-server")" ;;
  up) up ;;
  down) down ;;
  controller-down) stop slurmctld ;;
  controller-up) start_controller ;;
  *) sed -n '2,11p' "$0"; exit 2 ;;
esac
