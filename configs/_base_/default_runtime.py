# What every run shares: registration, seed, hooks, logging.
custom_imports = dict(imports=["spark_seg.register"], allow_failed_imports=False)
default_scope = "mmseg"

seed = 42
deterministic = False  # True: cuDNN's deterministic algorithms, slower on a GPU
randomness = dict(seed="$seed", deterministic="$deterministic")
precision = (
    "auto"  # 'bf16', 'fp16' (GPU): autocast, fp32 weights | 'fp32'; auto: bf16 where a GPU has it
)
allow_tf32 = None  # what fp32 means on a GPU. True: TF32; False: fp32 alone; None: torch's choice, TF32 in convolutions
accelerate = True  # the same function in less time; False: mmsegmentation's own forwards
compile = (
    False  # True, or dict(mode="max-autotune"): torch.compile, for GPUs; slower on CPUs in training
)
cuda_graphs = (
    False  # True: forward and backward pass replayed, for small batches on a GPU with a slow CPU
)

# Choices worked into the model; None leaves it as `_base_/models` has it.
head = None  # 'paper': the paper's decoder and width, as NVlabs' and Hugging Face's weights have it
loss = None  # 'ce' 'dice' 'ce_dice' 'focal' 'ohem' 'lovasz' 'tversky' 'boundary', or a sum: 'ce_dice+0.5*boundary'
class_weights = (
    None  # [1, 2, 3] | 'median_frequency' | 'effective_number', or dict(type=..., cap=5)
)
drop_path = None  # 0.2
tta = None  # 2 | 4 | 8 views, or dict(views=4, scales=[0.75, 1.0, 1.25]): in test.py and infer.py

log_every = 20  # steps
checkpoint_steps = None  # also save within an epoch, every so many steps
save_best = "spark/score"
tensorboard = True  # event files in <work folder>/tensorboard
wandb = None  # dict(project="spark", mode="offline"): arguments of wandb.init
mlflow = None  # dict(tracking_uri=..., experiment_name=..., run_name=..., tags=...), all optional

env_cfg = dict(cudnn_benchmark=True, mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0))
default_hooks = dict(
    runtime_info=dict(type="StepScalarsHook", log_every="$log_every"),
    logger=dict(type="TrainLoggerHook"),
    checkpoint=dict(
        type="BestAndLastHook", save_best="$save_best", interval=1, steps="$checkpoint_steps"
    ),
)
custom_hooks = [
    dict(type="RunRecordHook", log_every="$log_every", curves_every=60.0),
    dict(type="TrackersHook", tensorboard="$tensorboard", wandb="$wandb", mlflow="$mlflow"),
    dict(type="BadFilesHook"),
    dict(type="ProgressHook"),
]
# The RunRecordHook writes metrics and curves, the TrackersHook the trackers, which go on in the same run with --resume.
visualizer = dict(type="Visualizer", vis_backends=[])
log_processor = dict(by_epoch=True, window_size="$log_every")
log_level = "INFO"
