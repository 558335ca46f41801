#!/usr/bin/env bash
# What every launcher of this folder starts, once on every host: the training command.
#
#   launch/run.sh --config configs/movielens_1m_8b.yaml --run_dir runs/movielens-1m-8b [settings]
#
# Asked to stop (SIGTERM, SIGUSR1, SIGHUP, Ctrl-C), the program saves a checkpoint and exits with 0, which a scheduler
# would take for the end of the work. So this passes the signal on and exits with 143 instead; started again, the run
# goes on.
# PYTHON names the interpreter (.venv/bin/python); DRY_RUN=1 prints the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

train=("${PYTHON:-.venv/bin/python}" -m r2rec_jax.train "$@")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${train[@]}"
  printf '\n'
  exit
fi

"${train[@]}" &
child=$!
stopped=''
interrupted=1
trap 'stopped=1 interrupted=1; kill -TERM "$child" 2>/dev/null || true' TERM USR1 HUP INT
while [[ -n $interrupted ]]; do # a signal ends `wait`, not the child
  interrupted=''
  code=0
  wait "$child" || code=$?
done
if [[ -n $stopped ]] && ((code == 0)); then
  code=143
fi
exit "$code"
