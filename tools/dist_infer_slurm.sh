#!/usr/bin/env bash
#SBATCH --job-name=spark_infer
#SBATCH --output=%x-%j.out
#SBATCH --open-mode=append
#SBATCH --requeue
# Predicts images and writes the submission on any number of nodes, one task for each GPU; see docs/slurm.md.
#   MODEL_PATH=best.safetensors sbatch --ntasks=4 --gpus-per-task=1 tools/dist_infer_slurm.sh CONFIG
set -euo pipefail
# Slurm runs a copy of this script: the clone is where it was submitted from, else where Slurm says that it lay.
root=${SPARK_SEG_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}
if [ ! -f "$root/tools/launch.sh" ]; then
    root=$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|^ *Command=\(.*\)/tools/dist_infer_slurm.sh.*|\1|p') || root=
fi
if [ ! -f "$root/tools/launch.sh" ]; then
    echo "error: the clone of spark_seg was not found: submit from it, or set SPARK_SEG_ROOT" >&2
    exit 2
fi
. "$root/tools/launch.sh"
run_slurm infer "$@"
