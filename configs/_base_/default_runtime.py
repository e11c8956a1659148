# What every run shares: registration, seed, hooks, logging.
custom_imports = dict(imports=["spark_seg.register"], allow_failed_imports=False)
default_scope = "mmseg"

seed = 42
deterministic = False  # True: cuDNN's deterministic algorithms, slower on a GPU
randomness = dict(seed="$seed", deterministic="$deterministic")
precision = (
    "auto"  # 'bf16' (autocast, fp32 weights) | 'fp32'; auto: bf16 on GPUs that compute in it
)
accelerate = True  # the same function in less time; False: mmsegmentation's own forwards

log_every = 20  # steps
checkpoint_steps = None  # also save within an epoch, every so many steps
save_best = "spark/score"

env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
default_hooks = dict(
    logger=dict(type="TrainLoggerHook", interval="$log_every"),
    checkpoint=dict(
        type="BestAndLastHook", save_best="$save_best", interval=1, steps="$checkpoint_steps"
    ),
)
custom_hooks = [
    dict(type="RunRecordHook", log_every="$log_every", curves_every=60.0),
    dict(type="ProgressHook"),
]
# Curves and metrics are the RunRecordHook's; mmengine's own backend would write them a second time.
visualizer = dict(type="Visualizer", vis_backends=[])
log_processor = dict(by_epoch=True, window_size="$log_every")
log_level = "INFO"
