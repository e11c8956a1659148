"""The SegFormer weights that mmsegmentation publishes, by training set and variant.

The addresses are those of mmsegmentation 1.2.2 (`configs/segformer`: its metafile and configs).
Each file's name ends in the first eight hex digits of its SHA-256. ImageNet files hold the backbone
alone. ADE20K's b5 is the one trained at 640 px (mIoU 49.6; there is another at 512 px with 49.1).

Licence: the weights derive from NVIDIA's SegFormer (arXiv:2105.15203), whose licence allows
non-commercial use only: https://github.com/NVlabs/SegFormer/blob/master/LICENSE
"""

from dataclasses import dataclass

from spark_seg.errors import UserError, nearest

SOURCES = ("ade20k", "cityscapes", "imagenet")
VARIANTS = ("b0", "b1", "b2", "b3", "b4", "b5")

LICENCE = (
    "NVIDIA's licence for SegFormer, non-commercial use only "
    "(https://github.com/NVlabs/SegFormer/blob/master/LICENSE)"
)
"""Whose terms hold for the weights here: mmsegmentation's code is under Apache-2.0, its SegFormer weights derive from
NVIDIA's."""


def licence_of(source: str) -> str:
    """The licence of a published source or a Hugging Face repository, in words to show where it is fetched."""
    if source in SOURCES or source.lower().startswith("nvidia/"):
        return LICENCE
    return f"see https://huggingface.co/{source}; SegFormer weights mostly derive from NVIDIA's, which are {LICENCE}"


_HOST = "https://download.openmmlab.com/mmsegmentation/v0.5"
_ADE20K = {
    "b0": "512x512_160k_ade20k_20210726_101530-8ffa8fda",
    "b1": "512x512_160k_ade20k_20210726_112106-d70e859d",
    "b2": "512x512_160k_ade20k_20210726_112103-cbd414ac",
    "b3": "512x512_160k_ade20k_20210726_081410-962b98d2",
    "b4": "512x512_160k_ade20k_20210728_183055-7f509d7d",
    "b5": "640x640_160k_ade20k_20210801_121243-41d2845b",
}
_CITYSCAPES = {
    "b0": "8x1_1024x1024_160k_cityscapes_20211208_101857-e7f88502",
    "b1": "8x1_1024x1024_160k_cityscapes_20211208_064213-655c7b3f",
    "b2": "8x1_1024x1024_160k_cityscapes_20211207_134205-6096669a",
    "b3": "8x1_1024x1024_160k_cityscapes_20211206_224823-a8f8a177",
    "b4": "8x1_1024x1024_160k_cityscapes_20211207_080709-07f6c333",
    "b5": "8x1_1024x1024_160k_cityscapes_20211206_072934-87a052ec",
}
_IMAGENET = {
    "b0": "20220624-7e0fe6dd",
    "b1": "20220624-02e5a6a1",
    "b2": "20220624-66e8bf70",
    "b3": "20220624-13b1141c",
    "b4": "20220624-d588d980",
    "b5": "20220624-658746d9",
}


@dataclass(frozen=True)
class Published:
    """One published file.

    Attributes:
        url: Where it is.
        backbone_only: Whether it holds no decode head.
    """

    url: str
    backbone_only: bool

    @property
    def file(self) -> str:
        """The file's name, which is also its name in the cache."""
        return self.url.rsplit("/", 1)[1]

    @property
    def digest(self) -> str:
        """The first eight hex digits of the file's SHA-256."""
        return self.file.removesuffix(".pth").rsplit("-", 1)[1]


def published(source: str, variant: str) -> Published:
    """The file for a training set and a variant.

    Args:
        source: `ade20k`, `cityscapes` or `imagenet`.
        variant: `b0` to `b5`.

    Raises:
        UserError: No such source or variant; with the nearest name.
    """
    if source not in SOURCES:
        raise UserError(
            f"no pretrained weights {source!r}; there are {', '.join(SOURCES)}, Hugging Face repositories "
            "(nvidia/mit-b2), files (.pth, .safetensors, .bin), folders, and None"
            f"{nearest(source, SOURCES)}"
        )
    if variant not in VARIANTS:
        raise UserError(
            f"no SegFormer variant {variant!r}; there are {', '.join(VARIANTS)}"
            f"{nearest(variant, VARIANTS)}"
        )
    if source == "imagenet":
        url = f"{_HOST}/pretrain/segformer/mit_{variant}_{_IMAGENET[variant]}.pth"
        return Published(url, backbone_only=True)
    name = f"segformer_mit-{variant}_{(_ADE20K if source == 'ade20k' else _CITYSCAPES)[variant]}"
    # The folder is the file's name without date and hash.
    folder = name.rsplit("_", 2)[0]
    return Published(f"{_HOST}/segformer/{folder}/{name}.pth", backbone_only=False)
