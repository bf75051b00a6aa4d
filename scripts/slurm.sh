#!/usr/bin/env bash
# Trains a student on several machines of a Slurm cluster, one task a machine:
#
#   sbatch --nodes=4 scripts/slurm.sh --config=... --data=... --pseudo_labeled=... --workdir=...
#
# Submit it in the checkout, which all machines see at the same place, with its environment made.
# STAGE names another training, such as run_teacher.sh, or the loop, run_noisy_student.sh. PORT is the
# port of the workers.
# A run that lost a worker (75), or whose time is up (143), queues again and goes on from its last
# checkpoint. Any other end is final.
#SBATCH --job-name=student
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

export STAGE=${STAGE:-./run_student.sh}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
WORKERS=$(awk -v port="${PORT:-12345}" '{printf "%s\"%s:%s\"", sep, $1, port; sep = ","}' \
  <<<"$hosts")
export WORKERS
code=0
# shellcheck disable=SC2016 # each task expands its own number
srun --kill-on-bad-exit=0 bash -c '
  export TF_CONFIG="{\"cluster\": {\"worker\": [$WORKERS]},
    \"task\": {\"type\": \"worker\", \"index\": $SLURM_PROCID}}"
  exec "$STAGE" --strategy=multi_worker "$@"' worker "$@" || code=$?
if [[ $code == 75 || $code == 143 ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
