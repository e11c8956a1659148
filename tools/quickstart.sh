#!/usr/bin/env bash
# The main job from nothing: packages, demo data, training, evaluation, submission, check, score.
set -euo pipefail
cd "$(dirname "$0")/.."
. tools/setup_env.sh
setup_env '[fast]'

# The demo has data of its own.
unset SPARK_DATA_ROOT SPARK_TEST_ROOT SPARK_STAGE_DIR
config=segformer_b0_spark_demo
run=work_dirs/$config
best=$run/checkpoints/best.safetensors
data=data/spark_demo
python=.venv/bin/python
# Each step is skipped when what it makes is there and not older than what it is made from.
step() { echo && echo "== $1"; }

# On a GPU, and where the processor computes in bf16, more epochs fit the ten minutes.
train() {
    local options=()
    if "$python" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
        options=(--cfg-options epochs=27 val_every=27)
    elif grep -qE 'avx512_bf16|amx_bf16' /proc/cpuinfo 2>/dev/null; then
        options=(--cfg-options precision=bf16 epochs=27 val_every=27)
    fi
    "$python" tools/train.py "configs/$config.py" "$@" ${options[@]+"${options[@]}"}  # bash 3.2: an empty array is unbound
}

step "1/5 train $config with DeepSpeed (renders its data first)"
# A training by these very configs and this very code is not made twice, and goes on where it was interrupted.
configs=$(find configs spark_seg -name '*.py' -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat | cksum)
begun=work_dirs/.$config.begun finished=work_dirs/.$config.finished
if [ "$(cat "$finished" 2>/dev/null)" = "$configs" ] && [ -f "$best" ]; then
    echo "done before: $run"
elif [ "$(cat "$begun" 2>/dev/null)" = "$configs" ]; then
    train --resume
else
    [ ! -f "$begun" ] || echo "configs or code are others than those of $run: anew"
    mkdir -p work_dirs
    echo "$configs" >"$begun"
    train
fi
echo "$configs" >"$finished"

step "2/5 evaluate the best checkpoint"
if [ "$run/test_val/table.txt" -nt "$best" ]; then
    cat "$run/test_val/table.txt"
else
    "$python" tools/test.py "configs/$config.py"
fi

step "3/5 write the submission"
if [ "$run/submission/submission.zip" -nt "$best" ]; then
    echo "done before: $run/submission/submission.zip"
else
    "$python" tools/infer.py "configs/$config.py" --out "$run/submission" --overlays 8
fi

step "4/5 check it as a stranger would"
"$python" -m spark_seg.submission.check "$run/submission/submission.zip" --images "$data/stream-1-test"

step "5/5 score it against the rendered truth"
"$python" -m spark_seg.submission.score "$run/submission/submission.zip" --truth "$data/stream-1-test-truth" \
    --json "$run/submission/score.json"

echo
echo "Look at:"
echo "  the table        $run/test_val/table.txt"
echo "  the overlays     $run/test_val/overlays.png"
echo "  the curves       $run/curves.png"
echo "  the submission   $run/submission/submission.zip"
