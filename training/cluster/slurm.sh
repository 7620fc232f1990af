#!/bin/bash
# One worker on each node of a Slurm cluster:
#   sbatch training/cluster/slurm.sh s24-224 --data-dir DIR --output DIR
# When a worker fails, all restart and resume from the last checkpoint. Two
# minutes before the time limit, the job saves and requeues itself.
#SBATCH --job-name=cait
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
workers=$(scontrol show hostnames | sed 's/$/:2222/' | paste -sd,)
for _ in {1..100}; do
  srun --kill-on-bad-exit=1 bash -c \
    'exec training/cluster/worker.sh "$SLURM_PROCID" "$@"' worker "$workers" \
    python -m training.train "$@" --strategy workers
  status=$?
  case $status in
    0) exit ;;
    130) exec scontrol requeue "$SLURM_JOB_ID" ;;  # it was asked to stop
  esac
done
exit $status
