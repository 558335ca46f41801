#!/usr/bin/env bash
# A Cloud TPU VM or slice of any number of hosts: the same command on all of them.
#
#   gcloud compute tpus tpu-vm create NAME --zone=ZONE --accelerator-type=v5litepod-16 --version=v2-alpha-tpuv5-lite
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all --command="
#     git clone REPOSITORY r2rec_jax && cd r2rec_jax && make setup && .venv/bin/pip install --editable '.[tpu]'"
#   launch/tpu_vm.sh NAME ZONE --config configs/movielens_1m_8b.yaml --run_dir /mnt/runs/movielens-1m-8b \
#     --parallel.fsdp 16
#
# --parallel.fsdp is the number of chips where one cannot hold the weights and what is beside them (16 GB at 8B; --plan
# says). The command stays in the foreground for as long as the run: start it where it is not cut off, as in tmux.
# --run_dir, --data.path and --data.cache_dir lie where all hosts see them (Filestore or another NFS). After a
# preemption, make the TPU anew and give the last command again. R2REC_DIR names another folder than ~/r2rec_jax;
# DRY_RUN=1 prints.
set -euo pipefail
if (($# < 2)) || [[ $1 == -* || $2 == -* ]]; then
  echo "error: launch/tpu_vm.sh needs the TPU's name and its zone before the settings; got: $*" >&2
  exit 2
fi
name=$1 zone=$2
shift 2

remote=$(printf '%q ' cd "${R2REC_DIR:-r2rec_jax}")
remote+="&& $(printf '%q ' launch/run.sh "$@" --parallel.distributed auto)"
ssh=(gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$remote")
if [[ -n ${DRY_RUN:-} ]]; then
  printf '%q ' "${ssh[@]}"
  printf '\n'
  exit
fi
exec "${ssh[@]}"
