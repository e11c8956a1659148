"""Maps in bands of rows: what a layer makes of one band is used up while the cache still holds it.

A stage's hidden map at 1024 x 1024 px has 67 MB, and so has each of the head's; written to memory and read again by
every operator they cost more time than the arithmetic. The result of a band is what the whole map's rows would be, up
to rounding: rows that a band needs of its neighbours are computed with it.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

BAND_BYTES = (
    4 << 20
)  # of a map's band: several of them fit a last-level cache, and threads find enough work in one


def bands_of(like: Tensor, height: int, row: int, step: int = 1) -> list[tuple[int, int]]:
    """Bands (first row, row after the last) of maps with `height` rows of `row` numbers each.

    Args:
        like: A tensor of their device and dtype.
        height: Rows of a map.
        row: Numbers in a row, all channels together.
        step: Bands begin at multiples of it.

    Returns:
        One band where there is nothing to gain: on GPUs, and for maps that are small.
    """
    if like.device.type != "cpu":
        return [(0, height)]
    rows = max(BAND_BYTES // (row * like.element_size()) // step, 1) * step
    count = max(round(height / rows), 1)
    rows = -(-height // (count * step)) * step  # bands of about one size
    return [(start, min(start + rows, height)) for start in range(0, height, rows)]


def whole_factor(x: Tensor, height: int, width: int) -> int:
    """By how much a map [B, C, H, W] is enlarged to (height, width), the same in both directions; 0 where it is not."""
    factor = height // x.shape[2]
    return factor if (height, width) == (factor * x.shape[2], factor * x.shape[3]) else 0


def upsample_rows(x: Tensor, band: Sequence[int], width: int) -> Tensor:
    """Rows `band` of a map that is enlarged bilinearly by a whole factor (`align_corners=False`).

    Args:
        x: [B, C, H, W], `width` a multiple of W.
        band: First row, a multiple of the factor, and row after the last, too.
        width: Of the result.

    Returns:
        [B, C, rows, width]: these rows of `F.interpolate(x, scale_factor=width / W, mode="bilinear")`.
    """
    factor = width // x.shape[3]
    start, stop = (row // factor for row in band)
    above, below = max(start - 1, 0), min(stop + 1, x.shape[2])
    rows = x[:, :, above:below]
    out = F.interpolate(
        rows, size=((below - above) * factor, width), mode="bilinear", align_corners=False
    )
    return out[:, :, (start - above) * factor : (stop - above) * factor]
