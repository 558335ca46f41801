#!/usr/bin/env bash
# A list of experiments on a GPU, within a limit in minutes; start it again and it goes on where it stopped.
#
#   launch/gpu_evidence.sh                     on a machine with one GPU and the extra [cuda] or [cuda13]
#   MINUTES=25 OUT=/some/folder launch/gpu_evidence.sh --only sft sft+grpo baselines --seeds 0
#
# LIST       the list                          (configs/evidence/smollm2_1m.yaml)
# MINUTES    that it may take; a step that is under way is ended and saved, which takes as long as a step, and at most
#            five and a half minutes    (60)
# RESULTS    folder of the result file         (results)
# OUT        folder for what must outlive the machine: the result file, and the runs in runs.tar.gz.aa, .ab, ...; until
#            all is done also so-far/, logs, metrics and results of the runs under way, written anew every 45 seconds
# KEEP       of the runs: small (results, answers, metrics, logs: enough for the report; what is done stays done, but what
#            builds on it trains its stages again), or all (what was trained too, but for checkpoints of a finished
#            pretraining: what is begun goes on, and stages are shared)    (small)
# FROM       OUT of an earlier start, unpacked first where the list has no runs yet
# PYTHON     interpreter                       (.venv/bin/python)
#
# Further arguments go to python -m r2rec_jax.experiments (--data_path FOLDER where nothing can be downloaded). Exit
# code 0: nothing is left of what was asked for; 1: something failed, the rest is done; 75: the limit, SIGTERM or Ctrl-C
# came first, and what there is has been handed over; else the program's own.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
list=${LIST:-configs/evidence/smollm2_1m.yaml} minutes=${MINUTES:-60} results=${RESULTS:-results} out=${OUT:-}
keep=${KEEP:-small} from=${FROM:-} python=${PYTHON:-.venv/bin/python}
refuse() { echo "error: $1" >&2; exit 2; }
[[ $minutes =~ ^[0-9]+([.][0-9]+)?$ ]] || refuse "MINUTES must be a number; got '$minutes'"
[[ $keep == small || $keep == all ]] || refuse "KEEP must be small or all; got '$keep'"
told=$("$python" -c 'import sys
from r2rec_jax.stages.cli import run_entry
from r2rec_jax.stages.experiments.plan import read_list, root_of
def tell(argv):
    asked = read_list(argv[0])
    print(asked.name, root_of(asked), sep="\n")
sys.exit(run_entry(tell, sys.argv[1:]))' "$list") || exit 2
result=$results/evidence_${told%%$'\n'*}.json root=${told#*$'\n'}

if [ -n "$from" ] && [ ! -d "$root" ]; then
  # Beside their place: half of them there would be taken for all by the next start.
  rm -rf "$root.from" && mkdir -p "$root.from" || exit 2
  if ! cat "$from"/runs.tar.gz.* | tar -C "$root.from" -xzf -; then
    rm -rf "$root.from"
    refuse "FROM must hold runs.tar.gz.aa, .ab, ... whole; '$from' has none, or a part is missing or damaged"
  fi
  mv "$root.from" "$root" || exit 2
fi

# Without a GPU to be had an experiment fails at once instead of spending the time on the CPU.
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}

# In the background, so that a signal is handed on at once instead of after the program's end; timeout passes it on,
# and waits longer for the program than that waits for an experiment's step to end.
asked=
timeout --signal=TERM --kill-after=330 "$(awk "BEGIN { print $minutes * 60 }")" \
  "$python" -m r2rec_jax.experiments "$list" --results "$results" "$@" &
program=$!
so_far() { # what can be read of runs under way, should the machine end before this script
  mkdir -p "$out/so-far"
  cp "$result" "$out/" 2>/dev/null
  [ ! -d "$root" ] || (cd "$root" && find . \( -name log.txt -o -name failed.json -o -path '*/run/metrics.jsonl' -o \
    -path '*/run/evaluate/results-*.json' \) -print0 | tar --null -T - -cf -) | tar -C "$out/so-far" -xf -
}
while [ -n "$out" ] && sleep "${EVERY:-45}"; do so_far; done > /dev/null 2>&1 &
watcher=$!
trap 'asked=1; kill -TERM $program 2>/dev/null' TERM INT HUP
wait $program
code=$?
while kill -0 $program 2>/dev/null; do # the trap has ended that wait
  wait $program
  code=$?
done
kill $watcher 2>/dev/null
wait $watcher 2>/dev/null
if [ -n "$asked" ]; then
  echo "stopped when asked to; start it again to go on"
  code=75
elif [ $code -eq 124 ]; then
  echo "stopped at the limit of $minutes minutes; start it again to go on"
  code=75
fi

if [ -n "$out" ]; then
  mkdir -p "$out" || exit 2
  cp "$result" "$out/" 2>/dev/null || echo "no result file yet"
  left_out=(--exclude='*/run/tensorboard' --exclude='*/lock')
  if [ "$keep" = all ]; then
    while read -r stage; do # its product is whole, so nothing goes on from its checkpoints
      left_out+=(--exclude="${stage#"$root"/}/checkpoints")
    done < <(find "$root" \( -path '*/run/pretrain/backbone' -o -path '*/run/*/adapter' \) -prune -printf '%h\n' 2>/dev/null)
  else # without its products a finished stage must not be taken for one
    left_out+=(--exclude='*/run/*/checkpoints' --exclude='*.safetensors' --exclude='*/run/prepare' \
      --exclude='*/run/thoughts' --exclude='*/run/stages.json' --exclude='./baselines/*/prepared')
    while read -r run; do # it will be trained anew, and answers of two trainings must not meet
      [ -e "$run/../done.json" ] || left_out+=(--exclude="${run#"$root"/}/evaluate")
    done < <(find "$root" -mindepth 3 -maxdepth 3 -name run 2>/dev/null)
  fi
  if [ -d "$root" ]; then
    rm -f "$out"/new.runs.*
    # The former ones stay until the new ones are whole.
    tar -C "$root" "${left_out[@]}" -czf - . | split -b 15m - "$out/new.runs.tar.gz."
    status=("${PIPESTATUS[@]}") # tar's 1: a file changed while it was read
    if [ "${status[0]}" -le 1 ] && [ "${status[1]}" -eq 0 ]; then
      rm -f "$out"/runs.tar.gz.*
      for part in "$out"/new.runs.*; do mv "$part" "$out/${part##*/new.}"; done
      [ $code -ne 0 ] || rm -rf "$out/so-far"
    else
      echo "error: the runs could not be written to $out; earlier ones there are left as they are" >&2
      code=1
    fi
  fi
fi
exit $code
