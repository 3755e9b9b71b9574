#!/bin/bash
# Training on the GPUs of two machines under Slurm: one task for each GPU.
#
#   sbatch job.sh
#
# A job that ends at its time limit, or is requeued, goes on where it ended: --resume is given when there is one.
#SBATCH --job-name=train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

output=run
export OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
resume=
[ -e "$output/last.ckpt" ] && resume=--resume
# the failure of one task ends all
srun --kill-on-bad-exit=1 nequip-md-train train.yaml --output "$output" $resume
