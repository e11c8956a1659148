"""Bands of rows: they cover the map, and their rows are the whole map's."""

import pytest
import torch
import torch.nn.functional as F

from spark_seg.models import bands
from spark_seg.models.bands import bands_of, upsample_rows, whole_factor


@pytest.mark.parametrize("height", [8, 17, 64, 128, 250])
@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("size", [1, 700, 1 << 14, 1 << 30])
def test_bands_cover_the_map(height: int, step: int, size: int, monkeypatch) -> None:
    monkeypatch.setattr(bands, "BAND_BYTES", size)
    found = bands_of(torch.empty(0), height, row=64, step=step)
    assert [row for band in found for row in range(*band)] == list(range(height))
    assert all(start % step == 0 for start, _ in found)
    if size == 1 << 30:
        assert len(found) == 1
    if size == 1:
        assert max(stop - start for start, stop in found) <= 2 * step


def test_one_band_off_the_cpu() -> None:
    assert bands_of(torch.empty(0, device="meta"), 1 << 16, row=1 << 16) == [(0, 1 << 16)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("factor", [2, 3, 8])
def test_rows_of_an_enlarged_map(dtype: torch.dtype, factor: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 5, 6, 7, dtype=dtype).contiguous(memory_format=torch.channels_last)
    whole = F.interpolate(x, scale_factor=factor, mode="bilinear", align_corners=False)
    limit = 1e-6 if dtype == torch.float32 else 1e-14
    for start in range(6):
        for stop in range(start + 1, 7):
            band = (start * factor, stop * factor)
            rows = upsample_rows(x, band, 7 * factor)
            assert (rows - whole[:, :, slice(*band)]).abs().max() < limit * whole.abs().max()


@pytest.mark.parametrize(
    ("height", "width", "factor"), [(32, 48, 8), (4, 6, 1), (33, 48, 0), (32, 24, 0)]
)
def test_whole_factor(height: int, width: int, factor: int) -> None:
    assert whole_factor(torch.empty(1, 3, 4, 6), height, width) == factor
