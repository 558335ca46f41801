#!/usr/bin/env bash
# Both GPU presets of the benchmark, work by work, each within its limit; start it again after a stop and it goes on.
#
#   launch/gpu_bench.sh                        on a machine with one GPU and the extras [bench] and [cuda] or [cuda13]
#   PRESETS=smoke LIMIT_S=300 launch/gpu_bench.sh
#
# PRESETS    which presets, in order           (gpu-135m gpu-8b)
# WORKS      which works of each               (rollout numerics sft grpo recommend load)
# LIMIT_S    seconds that one work may take    (540)
# OUT        folder of the result files        (results)
# SCRATCH    weights that both sides read; 17 GB for gpu-8b, removed at the end    (/var/tmp/r2rec-bench)
# PYTHON     interpreter                       (.venv/bin/python)
#
# A work whose rows are in the result file is not measured again. A work that fails or runs into its limit is reported,
# the others still run, and the exit code is 1.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
presets=${PRESETS:-gpu-135m gpu-8b} works=${WORKS:-rollout numerics sft grpo recommend load}
limit=${LIMIT_S:-540} out=${OUT:-results} scratch=${SCRATCH:-/var/tmp/r2rec-bench} python=${PYTHON:-.venv/bin/python}
mkdir -p "$out" || exit 2
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} # without a GPU to be had it fails at once instead of measuring the CPU
missing=0

measured() {  # file work
  [ -f "$1" ] && "$python" - "$1" "$2" <<'PY'
import json, sys
rows = json.load(open(sys.argv[1], encoding="utf-8"))["rows"]
sys.exit(0 if any(row["work"] == sys.argv[2] for row in rows) else 1)
PY
}

for preset in $presets; do
  file=$out/bench_$(echo "$preset" | tr - _).json
  for work in $works; do
    if measured "$file" "$work"; then echo "$preset $work: measured already"; continue; fi
    echo "$preset $work: started $(date -u +%H:%M:%S), at most $limit s"
    timeout --kill-after=30 "$limit" "$python" -m r2rec_jax.bench --preset "$preset" --works "$work" --json "$file" \
      --scratch "$scratch/$preset"
    code=$?
    if [ $code -ne 0 ]; then
      missing=1
      [ $code -eq 124 ] || [ $code -eq 137 ] && echo "$preset $work: stopped at its limit of $limit s" >&2 \
        || echo "$preset $work: failed with code $code" >&2
    fi
  done
  rm -rf "${scratch:?}/$preset"
done
exit $missing
