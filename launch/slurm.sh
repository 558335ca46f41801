#!/usr/bin/env bash
#SBATCH --job-name=r2rec
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
#SBATCH --open-mode=append
#SBATCH --output=r2rec-%j.log
#
# Slurm, one process a node, which has all of the node's GPUs. From the repository, on a file system that all nodes see:
#
#   sbatch launch/slurm.sh --config configs/movielens_1m_8b.yaml --run_dir runs/movielens-1m-8b      one node of 8 GPUs
#   sbatch --nodes=4 --gpus-per-node=a100:4 launch/slurm.sh --config ... --run_dir ...      four nodes of four A100
#   sbatch --gpus-per-node=h100:8 --partition=spot launch/slurm.sh --config ...             preemptible H100
#
# Two minutes before the time limit, and when the job is preempted, the run saves a checkpoint and the job is queued
# again; it goes on where it stopped. DRY_RUN=1 prints what would be started.
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

step=(srun --kill-on-bad-exit=1 launch/run.sh "$@")
if ((${SLURM_NNODES:-1} > 1)); then
  step+=(--parallel.distributed auto)
  # Left alone, JAX takes one GPU for each Slurm task.
  JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((${SLURM_GPUS_ON_NODE:-8} - 1)))
  export JAX_LOCAL_DEVICE_IDS
fi
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-32} # srun does not take it over from sbatch
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${step[@]}"
  printf '\n'
  exit
fi

"${step[@]}" &
child=$!
interrupted=1
trap 'interrupted=1; scancel --signal=TERM "$SLURM_JOB_ID"' TERM # the steps get it, this script does not
while [[ -n $interrupted ]]; do # a signal ends `wait`, not the step
  interrupted=''
  code=0
  wait "$child" || code=$?
done
# 143: stopped before it was done. A job that its user cancelled is no longer running, and stays cancelled.
if ((code == 143)) && [[ $(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T) == RUNNING ]]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
