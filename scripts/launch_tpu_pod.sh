#!/usr/bin/env bash
# Runs one command on every worker of a Cloud TPU slice, from this checkout's last commit, and goes on without you.
#
#   scripts/launch_tpu_pod.sh start <tpu> <zone> python -m posebh_jax.main --config=configs/mdt.py:base --workdir=gs://...
#   scripts/launch_tpu_pod.sh logs <tpu> <zone> [lines]       the end of every worker's log
#   scripts/launch_tpu_pod.sh collect <tpu> <zone> <folder>   every worker's whole log
#   scripts/launch_tpu_pod.sh stop <tpu> <zone>               the run saves and leaves at the same step everywhere
#
# The command runs in a tmux session of each worker, so a lost connection does not end it. The same `start` again goes on
# from the newest checkpoint. RESTARTS=3 starts it again up to three times after an error (a worker that was lost ends all).
# DRY_RUN=1 prints what would be done. docs/pods.md has the rest: slices, buckets, preemption, what to do when it hangs.
set -euo pipefail
usage() {
    sed -n '2,11s/^# \{0,1\}//p' "$0"
    exit 2
}
[[ $# -ge 3 ]] || usage
action=$1 tpu=$2 zone=$3
shift 3
cd "$(dirname "$0")/.."
folder=posebh_boir_jax

on() { # <worker> <command>
    gcloud_ compute tpus tpu-vm ssh "$tpu" --zone="$zone" --worker="$1" --command="$2"
}
gcloud_() {
    if [[ -n ${DRY_RUN:-} ]]; then
        printf '%q ' gcloud "$@"
        echo
    else
        gcloud "$@"
    fi
}

case $action in
start)
    [[ $# -ge 1 ]] || usage
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz -o "$archive" HEAD
    printf -v command '%q ' "$@"
    once="$command & echo \$! > run.pid; wait \$!"
    loop=". .venv/bin/activate; for try in \$(seq 0 ${RESTARTS:-0}); do $once && break; [ -f run.stopped ] && break; done"
    printf -v session '%q' "{ $loop; } >> run.log 2>&1"
    gcloud_ compute tpus tpu-vm scp "$archive" "$tpu:$folder.tar.gz" --zone="$zone" --worker=all
    on all "
set -e
if tmux has-session -t $folder 2>/dev/null; then echo 'error: a run is going on here: stop it first' >&2; exit 1; fi
command -v tmux >/dev/null || sudo apt-get install -qq -y tmux
mkdir -p $folder && cd $folder && rm -f run.stopped && tar xzf ../$folder.tar.gz
if [[ ! -f .venv/bin/activate ]]; then
    python=python3 # images of TPU VMs may have an older one than the project needs
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        python=python3.11
        sudo apt-get update -qq
        sudo apt-get install -qq -y python3.11-venv
    fi
    \$python -m venv .venv
fi
source .venv/bin/activate
pip install --quiet --constraint constraints.txt --editable '.[tpu]'
tmux new-session -d -s $folder $session
echo \"\$(hostname): started; its log is \$PWD/run.log\""
    ;;
logs)
    on all "echo \"== \$(hostname)\"; tail -n ${1:-20} $folder/run.log; tmux has-session -t $folder 2>/dev/null || echo '(ended)'"
    ;;
collect)
    [[ $# -eq 1 ]] || usage
    mkdir -p "$1"
    workers=$(on all "echo worker")
    for ((worker = 0; worker < $(grep -c '^worker' <<<"$workers" || true); worker++)); do
        gcloud_ compute tpus tpu-vm scp "$tpu:$folder/run.log" "$1/worker_$worker.log" --zone="$zone" --worker="$worker"
    done
    ;;
stop)
    on all "touch $folder/run.stopped" # a program that is still starting just ends: it must not be started again
    on 0 "kill -TERM \$(cat $folder/run.pid)" # one process tells all
    ;;
*)
    usage
    ;;
esac
