# DeepSpeed with ZeRO: 0 replicates everything, 1 partitions the optimizer, 2 the gradients too, 3 the weights too.
zero_stage = 1
clip_grad = 1.0  # largest gradient norm

strategy = dict(
    type="SparkDeepSpeedStrategy",
    zero_optimization=dict(
        stage="$zero_stage",
        overlap_comm=True,
        reduce_bucket_size=500000000,
        allgather_bucket_size=500000000,
    ),
    gradient_clipping="$clip_grad",
)
