#!/usr/bin/env bash
# A real two-node SLURM on one machine, on loopback, without systemd or cgroups.
#   cluster.sh up DIR     start munged, MariaDB, slurmdbd, slurmctld and two slurmd in DIR; then: export SLURM_CONF=DIR/slurm.conf
#   cluster.sh down DIR   cancel jobs and stop them
# Needs root and: slurmctld slurmd slurmdbd slurm-client munge mariadb-server-core mariadb-client-core (Debian's packages).
set -euo pipefail
D=$(realpath -m "$2"); B=${SLURM_BASE_PORT:-16900}; H=$(hostname)
export SLURM_CONF=$D/slurm.conf MYSQL_UNIX_PORT=$D/db.sock
until_ok() { for _ in $(seq 100); do "$@" >/dev/null 2>&1 && return 0; sleep 0.1; done; echo "timed out: $*" >&2; return 1; }
up() {
  rm -rf "$D"; mkdir -p "$D"/{munge,state,spool/127.0.0.11,spool/127.0.0.12}
  (umask 077; head -c 128 /dev/urandom > "$D/munge/key")
  munged --socket="$D/munge/s" --key-file="$D/munge/key" --pid-file="$D/munge/pid" --log-file="$D/munge/log" --seed-file="$D/munge/seed"
  mariadb-install-db --no-defaults --user=root --datadir="$D/db" --auth-root-authentication-method=socket --skip-test-db --innodb-log-file-size=8M > "$D/db.log" 2>&1
  mariadbd --no-defaults --user=root --datadir="$D/db" --socket="$D/db.sock" --pid-file="$D/db.pid" --skip-networking --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 >> "$D/db.log" 2>&1 < /dev/null &
  local sql="mariadb --no-defaults --socket=$D/db.sock -u root"; until_ok $sql -e 'select 1'
  $sql -e "create database slurm_acct_db; create user slurm@localhost identified by 'slurm'; grant all on slurm_acct_db.* to slurm@localhost"
  (umask 077; cat > "$D/slurmdbd.conf") <<EOF
DbdHost=$H
DbdAddr=127.0.0.1
DbdPort=$((B+2))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/s
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
PidFile=$D/slurmdbd.pid
LogFile=$D/slurmdbd.log
EOF
  cat > "$SLURM_CONF" <<EOF
ClusterName=ci
FirstJobId=$B
SlurmdTimeout=10
SlurmctldHost=$H(127.0.0.1)
SlurmctldPort=$B
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge/s,cred_expire=5
CredType=cred/munge
SlurmctldPidFile=$D/slurmctld.pid
SlurmdPidFile=$D/slurmd-%n.pid
StateSaveLocation=$D/state
SlurmdSpoolDir=$D/spool/%n
SlurmctldLogFile=$D/slurmctld.log
SlurmdLogFile=$D/slurmd-%n.log
SlurmdParameters=config_overrides
SlurmctldParameters=preempt_send_user_signal
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((B+2))
AccountingStoragePass=$D/munge/s
AccountingStorageEnforce=associations
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
EnforcePartLimits=ALL
JobRequeue=1
KillWait=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=1
GresTypes=gpu
NodeName=127.0.0.11 NodeHostname=$H NodeAddr=127.0.0.11 Port=$((B+11)) CPUs=4 RealMemory=4000 Gres=gpu:2
NodeName=127.0.0.12 NodeHostname=$H NodeAddr=127.0.0.12 Port=$((B+12)) CPUs=4 RealMemory=4000 Gres=gpu:2
PartitionName=main Nodes=127.0.0.[11-12] Default=YES MaxTime=60 PriorityTier=1 GraceTime=15
PartitionName=urgent Nodes=127.0.0.[11-12] MaxTime=60 PriorityTier=10
EOF
  mknod -m 666 "$D/gpu0" c 1 3; mknod -m 666 "$D/gpu1" c 1 3     # stand-ins for GPU device files
  echo "Name=gpu File=$D/gpu[0-1]" > "$D/gres.conf"
  slurmdbd; until_ok test -s "$D/slurmdbd.pid"; until_ok sacctmgr -n show cluster
  { sacctmgr -i -Q add cluster ci; sacctmgr -i -Q add account research; sacctmgr -i -Q add user root account=research; } >/dev/null
  slurmctld -i; slurmd -N 127.0.0.11; slurmd -N 127.0.0.12
  until_ok bash -c '[ "$(sinfo -h -N -p main -o %T | grep -cx idle)" = 2 ]'
}
alive() { grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$1/status" 2>/dev/null; }
stop() { local pid; [ -s "$1" ] || return 0; pid=$(cat "$1"); kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do alive "$pid" || return 0; sleep 0.1; done; kill -9 "$pid" 2>/dev/null || true; }
down() {
  if [ -s "$D/slurmctld.pid" ] && alive "$(cat "$D/slurmctld.pid")"; then
    for signal in TERM KILL; do
      scancel -u root || true; scancel --full --signal=$signal -u root 2>/dev/null || true
      for _ in $(seq 50); do [ -z "$(squeue -h)" ] && break 2; sleep 0.2; done; done; fi
  for p in slurmd-127.0.0.11.pid slurmd-127.0.0.12.pid slurmctld.pid slurmdbd.pid db.pid munge/pid; do stop "$D/$p"; done
}
case $1 in up) up;; down) down;; *) echo "usage: $0 up|down DIR" >&2; exit 2;; esac
