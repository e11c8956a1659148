# AdamW, warm-up, then half a cosine; the values are the recipe's and named once.
epochs = 100
val_every = 1  # epochs
lr = 6e-5
weight_decay = 0.01
betas = (0.9, 0.999)
warmup_epochs = 5  # below 1: a fraction of all epochs
warmup_lr = 1e-7
min_lr = 1e-6

optimizer = None  # 'AdamW' | 'Adam' | 'SGD' | 'MuonAdamW', or dict(type="SGD", momentum=0.95); None: as below
schedule = (
    None  # 'cosine' | 'poly' | 'step' | 'constant', or dict(type="poly", power=0.9); None: as below
)
layer_decay = None  # 0.8: the rate falls by this factor from block to block below the head
head_lr = None  # 10: factor of the decode head's rate
patience = None  # 10: stop after so many validations without a better `save_best`

optim_wrapper = dict(
    type="DeepSpeedOptimWrapper",
    constructor="GroupedOptimWrapperConstructor",
    optimizer=dict(type="AdamW", lr="$lr", weight_decay="$weight_decay", betas="$betas", eps=1e-8),
    # no decay on norms and biases: the constructor leaves out everything with fewer than two dimensions
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type="WarmupCosineLR",
        warmup_epochs="$warmup_epochs",
        warmup_lr="$warmup_lr",
        min_lr="$min_lr",
        convert_to_iter_based=True,
    ),
]
train_cfg = dict(
    type="SparkTrainLoop",
    max_epochs="$epochs",
    val_interval="$val_every",
    accumulate="$accumulate",
)
val_cfg = dict(type="SparkValLoop")
