"""Training, evaluation and inference on mmengine's FlexibleRunner with DeepSpeed. Knows no SPARK."""
