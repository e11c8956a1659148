"""Labels without enlarging the logits: not a pixel differs from interpolating them all."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from spark_seg.models import upsample
from spark_seg.models.upsample import exact_labels

SIZES = [
    ((16, 16), (64, 64)),
    ((16, 16), (128, 128)),
    ((20, 16), (61, 97)),
    ((13, 29), (13, 29)),
    ((17, 31), (40, 33)),
    ((24, 40), (9, 23)),
    ((1, 7), (5, 64)),
    ((7, 1), (64, 5)),
    ((1, 1), (3, 3)),
    ((2, 3), (1, 1)),
    ((32, 30), (1000, 997)),
]


def smooth(shape: tuple[int, int], classes: int = 3, seed: int = 0) -> torch.Tensor:
    """Logits of large regions, as a trained network gives them."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, classes, 3, 3, generator=generator) * 6
    return F.interpolate(coarse, shape, mode="bicubic", align_corners=True)[0].contiguous()


def plain(logits: torch.Tensor, size: tuple[int, int]) -> np.ndarray:
    full = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)
    return full.argmax(1)[0].to(torch.uint8).numpy()


@pytest.fixture
def whatever_the_share(monkeypatch: Any) -> None:
    monkeypatch.setattr(upsample, "_WORTH", 1.0)


@pytest.mark.parametrize(("small", "size"), SIZES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_no_pixel_differs(
    small: tuple[int, int], size: tuple[int, int], classes: int, whatever_the_share: None
) -> None:
    for seed in range(3):
        logits = smooth(small, classes, seed)
        found = exact_labels(logits.numpy(), size)
        assert found is not None
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, plain(logits, size))


@pytest.mark.parametrize(("small", "size"), SIZES)
def test_ties_and_near_ties(
    small: tuple[int, int], size: tuple[int, int], whatever_the_share: None
) -> None:
    """Logits of few values, equal over whole regions, and ones a last bit apart."""
    generator = torch.Generator().manual_seed(1)
    for _ in range(4):
        ties = torch.randint(-1, 2, (3, *small), generator=generator).float() * 0.1
        bits = torch.randint(-2, 3, (3, *small), generator=generator, dtype=torch.int32)
        close = (torch.full_like(ties, 3.3).view(torch.int32) + bits).view(torch.float32)
        blended = torch.where(ties[:1] > 0, close, ties)
        for logits in (ties, close, blended):
            found = exact_labels(logits.contiguous().numpy(), size)
            assert found is not None
            np.testing.assert_array_equal(found, plain(logits, size))


def test_fields_that_cross_under_a_rounding(whatever_the_share: None) -> None:
    """Two classes whose difference crosses zero so flatly that whole rows of pixels lie within rounding."""
    ramp = torch.linspace(-1e-6, 1e-6, 32)[None].expand(32, 32)
    base = torch.full((32, 32), 7.7)
    logits = torch.stack([base, base + ramp, base - ramp.T])
    for size in ((128, 128), (100, 131)):
        found = exact_labels(logits.numpy(), size)
        assert found is not None
        expected = plain(logits, size)
        np.testing.assert_array_equal(found, expected)
        assert len(np.unique(expected)) == 3


def test_true_size_with_a_share_of_borders_as_trained() -> None:
    logits = smooth((256, 256), seed=4)
    found = exact_labels(logits.numpy(), (1024, 1024))
    assert found is not None
    np.testing.assert_array_equal(found, plain(logits, (1024, 1024)))
    assert len(np.unique(found)) == 3


def test_declines_what_it_cannot_promise() -> None:
    good = smooth((64, 64)).numpy()
    assert exact_labels(good, (99, 64)) is not None
    for value in (np.nan, np.inf, 1e35):
        bad = good.copy()
        bad[1, 3, 3] = value
        assert exact_labels(bad, (64, 64)) is None
    assert exact_labels(good * np.float32(1e-35), (64, 64)) is None
    assert exact_labels(good[:1].copy(), (64, 64)) is None
    noise = np.random.default_rng(0).standard_normal((3, 64, 64), np.float32)
    assert exact_labels(noise, (99, 64)) is None, "borders everywhere: no faster"
    np.testing.assert_array_equal(exact_labels(good * 0, (4, 4)), np.zeros((4, 4)))


def test_declines_where_torch_rounds_otherwise(monkeypatch: Any, whatever_the_share: None) -> None:
    """Another order of operations is noticed, whatever torch's is here."""
    assert exact_labels(smooth((16, 16)).numpy(), (64, 64)) is not None
    upsample._grid.cache_clear()
    real = F.interpolate
    wrong = lambda *args, **kwargs: real(*args, **kwargs) * (1 + 2**-22)  # noqa: E731
    monkeypatch.setattr(F, "interpolate", wrong)
    try:
        assert exact_labels(smooth((16, 16)).numpy(), (64, 64)) is None
    finally:
        upsample._grid.cache_clear()


def test_this_torch_is_understood() -> None:
    """Else everything still works, the slow way: find the order of operations of this torch's kernel."""
    assert upsample._grid(3, (16, 16), (64, 64), torch.get_num_threads()) is not None


def test_fused_multiply_add_rounds_once() -> None:
    from fractions import Fraction

    rng = np.random.default_rng(0)
    a, b, c = rng.standard_normal((3, 2000), np.float32)
    c[:1000] = -(a * b)[:1000]  # cancellation leaves what the product's rounding lost
    found = upsample._fma(a, b, c)
    for x, y, z, r in zip(a, b, c, found, strict=True):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = [np.nextafter(r, np.float32(-np.inf)), r, np.nextafter(r, np.float32(np.inf))]
        errors = [abs(Fraction(float(v)) - exact) for v in near]
        assert errors[1] == min(errors)
