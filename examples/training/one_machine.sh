#!/bin/sh
# Training on all GPUs of one machine, without a batch system:  sh one_machine.sh [options of nequip-md-train]
# On a machine without a GPU: PROCESSES=2 OMP_NUM_THREADS=4 sh one_machine.sh
processes=${PROCESSES:-$(nvidia-smi --list-gpus | wc -l)}
exec torchrun --standalone --nproc-per-node "$processes" --no-python nequip-md-train train.yaml "$@"
