"""Installs spark_seg with its configs and the console command `spark-seg`."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "spark_seg/__init__.py").read_text())
assert VERSION is not None

# The configs live at the repository's top and travel inside the package, where spark_seg.config finds them.
CONFIGS = ["spark_seg._configs"] + [
    "spark_seg._configs." + ".".join(folder.relative_to(ROOT / "configs").parts)
    for folder in sorted((ROOT / "configs").rglob("*"))
    if folder.is_dir() and folder.name != "__pycache__"
]

setup(
    name="spark-seg",
    version=VERSION.group(1),
    description="SegFormer on SPARK, the spacecraft segmentation challenge: train, evaluate, submit",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["spark_seg", "spark_seg.*"]) + CONFIGS,
    package_dir={"spark_seg._configs": "configs"},
    package_data={name: ["*.py"] for name in CONFIGS},
    entry_points={"console_scripts": ["spark-seg = spark_seg.cli:main"]},
    # mmengine, mmcv and mmsegmentation are frozen upstream; spark_seg/compat.py says what it mends and for which.
    install_requires=[
        "torch>=2.4",
        "mmengine>=0.10.5,<0.11",
        "mmcv-lite>=2.1.0,<2.2",
        "mmsegmentation>=1.2.2,<1.3",
        "deepspeed>=0.17.2,<0.20",
        "numpy>=1.26",
        "opencv-python>=4.9",
        "safetensors>=0.4.3",
        "matplotlib>=3.8",
        "pillow>=10",
        "psutil",
        "PyYAML>=6",
        "tensorboard>=2.15",
        "tqdm",
        # mmsegmentation imports these two without asking for them
        "ftfy",
        "regex",
    ],
    extras_require={
        # packing, checking and JPEG decoding in less time; used where they are installed
        "fast": ["isal>=1.6", "zlib-ng>=0.5", "simplejpeg>=1.8"],
        # tools/export.py and `infer.py --backend`
        "export": [
            "onnx>=1.17",
            "onnxruntime>=1.20",
            "onnxscript>=0.1",
            "openvino>=2025.0",
            "nncf>=2.15",
        ],
        "test": [
            "pytest>=8",
            "pytest-timeout",
            "pytest-xdist",
            # runs our GPU kernels on a CPU, number by number; CUDA builds of torch bring their own, so no pin
            "triton; sys_platform == 'linux' and platform_machine == 'x86_64'",
            # independent implementations that scores and models are checked against
            "transformers>=4.48",
            "scikit-learn",
            "scikit-image",
            "ruff",
            "mypy",
            "types-PyYAML",
            "build",
        ],
    },
)
