#!/usr/bin/env bash
# Runs one command on every worker of a Cloud TPU pod slice, from this checkout's state.
#
#   scripts/launch_tpu_pod.sh <tpu name> <zone> python -m posebh_jax.main --config=configs/mdt.py:base --workdir=gs://...
#
# The workers find each other by themselves (jax.distributed). Data must be readable by all of them: a mounted disk or bucket.
# Stop with Ctrl-C here and SIGTERM there (`pkill -TERM -f posebh_jax.main` by the same means): the run saves and leaves
# at the same step everywhere, and the same command goes on from there.
set -euo pipefail
if [[ $# -lt 3 ]]; then
    sed -n '2,9s/^# \{0,1\}//p' "$0"
    exit 2
fi
tpu=$1 zone=$2
shift 2
cd "$(dirname "$0")/.."
archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
git archive --format=tar.gz -o "$archive" HEAD
everywhere=(--zone="$zone" --worker=all)
gcloud compute tpus tpu-vm scp "$archive" "$tpu":posebh_boir_jax.tar.gz "${everywhere[@]}"
printf -v command '%q ' "$@"
gcloud compute tpus tpu-vm ssh "$tpu" "${everywhere[@]}" --command="
set -e
mkdir -p posebh_boir_jax && cd posebh_boir_jax && tar xzf ../posebh_boir_jax.tar.gz
[[ -d .venv ]] || python3 -m venv .venv
source .venv/bin/activate
pip install --quiet --constraint constraints.txt --editable '.[tpu]'
$command"
