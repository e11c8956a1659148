# Sourced by dist_*.sh and dist_*_slurm.sh: what launching has in common. See docs/slurm.md.
# shellcheck shell=bash

# Site settings (modules, environment, NCCL variables): one file, sourced; never an edit here.
source_site() {
    local site=${SPARK_SITE_FILE:-${XDG_CONFIG_HOME:-$HOME/.config}/spark_seg/site.sh}
    if [ -f "$site" ]; then
        set +eu # `module` and `conda activate` do not live with them
        # shellcheck disable=SC1090
        . "$site"
        set -eu
    elif [ -n "${SPARK_SITE_FILE:-}" ]; then
        echo "error: SPARK_SITE_FILE=$SPARK_SITE_FILE: there is no such file" >&2
        exit 2
    fi
}

# Sets `python`: $PYTHON, else the clone's own environment, else whatever is active.
choose_python() {
    python=${PYTHON:-}
    if [ -z "$python" ] && [ -x "$root/.venv/bin/python" ]; then
        python=$root/.venv/bin/python
    fi
    python=${python:-python3}
    if ! "$python" -c 'import torch' 2>/dev/null; then
        echo "error: $python has no torch: run tools/setup_env.sh's installation (bash tools/quickstart.sh), activate" \
            "an environment in the site file, or set PYTHON" >&2
        exit 2
    fi
}

# Sets `arguments` for tools/$1.py from the rest and from SEGFORMER_VARIANT, IMAGE_SIZE, MODEL_PATH ...
choose_arguments() {
    local list
    list=$(mktemp)
    PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" "$python" -m spark_seg.cli.environment "$@" >"$list" || {
        local code=$?
        rm -f "$list"
        exit "$code"
    }
    mapfile -d '' arguments <"$list"
    rm -f "$list"
}

show() {
    echo "+ $(printf '%q ' "$@")"
}

# run_torchrun COMMAND PROCESSES [ARGUMENTS]: on this node.
run_torchrun() {
    local command=$1 processes=$2
    shift 2
    source_site
    choose_python
    choose_arguments "$command" "$@"
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
    set -- "$python" -m torch.distributed.run --standalone --nproc-per-node="$processes" \
        "$root/tools/$command.py" "${arguments[@]}"
    show "$@"
    exec "$@"
}

# run_slurm COMMAND [ARGUMENTS]: in the script of sbatch; one task for each GPU, started by srun.
run_slurm() {
    local command=$1 code=0 task
    shift
    if [ -z "${SLURM_JOB_ID:-}" ]; then
        echo "error: start it with sbatch; inside an allocation: srun --kill-on-bad-exit=1 python tools/$command.py CONFIG" >&2
        exit 2
    fi
    # Slurm's warning may come before there is anything to pass it on to.
    local warned=
    trap 'warned=1' USR1
    source_site
    choose_python
    # of this node, the first: "3(x2),1" is three tasks here
    local tasks=${SLURM_TASKS_PER_NODE:-1}
    tasks=${tasks%%[(,]*}
    if [ "${SLURM_GPUS_ON_NODE:-0}" -gt "$tasks" ]; then
        echo "error: $SLURM_GPUS_ON_NODE GPUs but $tasks task(s) on a node: submit with" \
            "--ntasks-per-node=$SLURM_GPUS_ON_NODE" >&2
        exit 2
    fi
    choose_arguments "$command" "$@"
    # Since Slurm 22.05 srun does not take over --cpus-per-task by itself.
    export SRUN_CPUS_PER_TASK=${SRUN_CPUS_PER_TASK:-${SLURM_CPUS_PER_TASK:-1}}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SRUN_CPUS_PER_TASK}
    set -- srun --kill-on-bad-exit=1 "$python" "$root/tools/$command.py" "${arguments[@]}"
    echo "job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, ${SLURM_NTASKS:-1} tasks, start $((${SLURM_RESTART_COUNT:-0} + 1))"
    show "$@"
    if [ -n "$warned" ]; then
        set -- bash -c 'exit 75'
    fi
    "$@" &
    task=$!
    # Slurm's warning before the time limit reaches this shell alone (--signal=B:): srun passes USR1 on to the tasks.
    trap 'warned=1; kill -USR1 $task 2>/dev/null' USR1
    # TERM would make srun kill them; this way it reaches them as what it is.
    trap 'scancel --signal=TERM "$SLURM_JOB_ID"' TERM
    # A trap ends `wait` too, with srun still there: wait until it is not. bash keeps the code for the last `wait`.
    while kill -0 "$task" 2>/dev/null; do
        wait "$task" || true
    done
    wait "$task" || code=$?
    trap - TERM
    trap '' USR1
    # A task that had not begun to listen, or was too slow, is killed at the warning or when the first one has left.
    case "$warned:$code" in
    1:137 | 1:138 | 1:143)
        # Such an end saves nothing new: one that never gets further must not go round for ever.
        if [ "${SLURM_RESTART_COUNT:-0}" -ge 20 ]; then
            echo "error: ended before it could save (code $code), after $SLURM_RESTART_COUNT restarts: not started again;" \
                "give it more time (--time, --signal=B:USR1@300) or memory, then submit it with --resume" >&2
            exit "$code"
        fi
        echo "ended before it could save (code $code): goes on from the newest whole checkpoint"
        code=75
        ;;
    esac
    # 75: there is more to do.
    if [ "$code" = 75 ]; then
        start_again
    fi
    exit "$code"
}

# Asks Slurm to queue this job again, and waits to be ended. Only one that runs, or whose time was up: one that somebody
# has cancelled stays so, and one that is queued again already (a lost node, an order to requeue) is not queued twice.
start_again() {
    local job
    # Slurm that does not answer now may take the order all the same.
    job=$(scontrol show job --oneliner "$SLURM_JOB_ID") || job=" JobState=RUNNING "
    case "$job" in
    *" JobState=RUNNING "* | *" Reason=TimeLimit "*)
        echo "asking Slurm to start job $SLURM_JOB_ID again"
        if scontrol requeue "$SLURM_JOB_ID"; then
            sleep 60 # until Slurm ends this script
        fi
        ;;
    *) echo "job $SLURM_JOB_ID was cancelled or is queued again already" ;;
    esac
}
