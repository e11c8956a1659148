# DeepSpeed with ZeRO: 0 replicates everything, 1 partitions the optimizer, 2 the gradients too, 3 the weights too.
# auto: 0 in one process, where nothing can be partitioned and bookkeeping costs time; in several and with `offload` 1,
# for b4 and b5 2.
zero_stage = "auto"
clip_grad = 1.0  # largest gradient norm
accumulate = 1  # micro batches in an optimizer step; epochs and schedules count optimizer steps
ema_decay = None  # 0.999: validate, choose and export an average of the weights
offload = (
    None  # 'optimizer' (stages 1 to 3) | 'optimizer+parameters' (stage 3): kept in the CPU's memory
)
activation_checkpointing = (
    False  # True: blocks are computed again in the backward pass instead of kept
)
max_skipped = 10  # training stops after so many steps in a row whose gradient is not finite

strategy = dict(
    type="SparkDeepSpeedStrategy",
    zero_optimization=dict(
        stage="$zero_stage",
        overlap_comm=True,
        reduce_bucket_size=50000000,
        allgather_bucket_size=50000000,
    ),
    gradient_clipping="$clip_grad",
    gradient_accumulation_steps="$accumulate",
    ema_decay="$ema_decay",
    max_skipped="$max_skipped",
)
