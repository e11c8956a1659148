"""SegFormer for SPARK: train, evaluate and submit, on mmsegmentation and DeepSpeed.

Importing the package is light: neither torch nor mmseg is imported until a part that needs them is.
"""

__version__ = "0.1.0"
