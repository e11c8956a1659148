"""Test-time augmentation: exact inverses, equal to a plain transcription, batched as asked."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from spark_seg.errors import UserError
from spark_seg.models.tta import (
    _ALL,
    Tta,
    View,
    labels_from_probabilities,
    make_tta,
    mean_probabilities,
)

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(3, 3, 3, 3, generator=GENERATOR, dtype=torch.float64)


def network(x: Tensor) -> Tensor:
    """Any function of pictures that is not the same for mirrored ones; logits at a quarter of the size."""
    return F.conv2d(F.avg_pool2d(x, 4), WEIGHT, padding=1)


def picture(height: int = 64, width: int = 96, count: int = 2) -> Tensor:
    return torch.randn(count, 3, height, width, generator=GENERATOR, dtype=torch.float64)


@pytest.mark.parametrize("view", _ALL)
def test_undo_is_the_exact_reverse(view: View) -> None:
    x = picture()
    assert torch.equal(view.undo(view.apply(x)), x)
    assert torch.equal(view.apply(view.undo(x)), x)


def test_views_are_the_squares_eight() -> None:
    x = picture(5, 5, 1)
    seen = {tuple(view.apply(x).flatten().tolist()) for view in _ALL}
    turns = {tuple(torch.rot90(x, k, (2, 3)).flatten().tolist()) for k in range(4)}
    mirrored = {tuple(torch.rot90(x.flip(3), k, (2, 3)).flatten().tolist()) for k in range(4)}
    assert seen == turns | mirrored
    assert len(seen) == 8
    assert torch.equal(_ALL[1].apply(x), x.flip(3)), (
        "two views are the picture and its mirror image"
    )


def slow(
    inputs: Tensor, sizes: list[tuple[int, int]], views: int, scales: list[float]
) -> list[Tensor]:
    """One picture, one view, one scale at a time, turned by `rot90` and `flip` alone."""
    there = [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(2, 3),
             lambda x: torch.rot90(x, 1, (2, 3)).flip(2), lambda x: torch.rot90(x, 3, (2, 3)),
             lambda x: torch.rot90(x, 1, (2, 3)), lambda x: torch.rot90(x, 3, (2, 3)).flip(2)]  # fmt: skip
    back = [lambda x: x, lambda x: x.flip(3), lambda x: x.flip(2), lambda x: x.flip(2, 3),
            lambda x: torch.rot90(x.flip(2), 3, (2, 3)), lambda x: torch.rot90(x, 1, (2, 3)),
            lambda x: torch.rot90(x, 3, (2, 3)), lambda x: torch.rot90(x.flip(2), 1, (2, 3))]  # fmt: skip
    out = []
    for one, (height, width) in zip(inputs, sizes, strict=True):
        total = torch.zeros(3, height, width, dtype=torch.float64)
        for scale in scales:
            x = one[None]
            if scale != 1:
                side = [round(scale * s / 32) * 32 for s in x.shape[2:]]
                x = F.interpolate(
                    x, size=side, mode="bilinear", align_corners=False, antialias=scale < 1
                )
            for k in range(views):
                logits = back[k](network(there[k](x)))
                full = F.interpolate(
                    logits, size=(height, width), mode="bilinear", align_corners=False
                )
                total += full.softmax(1)[0]
        out.append(total / (views * len(scales)))
    return out


@pytest.mark.parametrize("views", [2, 4, 8])
@pytest.mark.parametrize("scales", [[1.0], [0.5, 1.0, 1.5]])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96)])
def test_equals_a_slow_transcription(
    views: int, scales: list[float], shape: tuple[int, int]
) -> None:
    inputs, sizes = picture(*shape, count=2), [(100, 120), (75, 75)]
    got = mean_probabilities(network, inputs, sizes, Tta(views, tuple(scales), at_once=3))
    for mine, wanted in zip(got, slow(inputs, sizes, views, scales), strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(mine.sum(0), torch.ones_like(mine[0]))


def test_batches() -> None:
    calls: list[tuple[int, ...]] = []

    def watched(x: Tensor) -> Tensor:
        calls.append(tuple(x.shape))
        return network(x)

    mean_probabilities(watched, picture(64, 64, 2), [(64, 64)] * 2, Tta(8, at_once=16))
    assert calls == [(16, 3, 64, 64)], "square views are one batch"
    calls.clear()
    mean_probabilities(watched, picture(64, 96, 2), [(64, 96)] * 2, Tta(8, at_once=6))
    assert [c[0] for c in calls] == [6, 2, 6, 2]
    assert calls[0][2:] == (64, 96)
    assert calls[-1][2:] == (96, 64)


def test_a_mirrored_picture_gets_mirrored_labels() -> None:
    x = picture(64, 64, 1)
    tta = Tta(2)
    one = mean_probabilities(network, x, [(64, 64)], tta)[0]
    other = mean_probabilities(network, x.flip(3), [(64, 64)], tta)[0]
    torch.testing.assert_close(other, one.flip(2))
    assert torch.equal(labels_from_probabilities(one).long(), one.argmax(0))


def test_labels_of_a_tie() -> None:
    probs = torch.tensor([[0.4, 0.2], [0.4, 0.4], [0.2, 0.4]])[:, None]
    assert labels_from_probabilities(probs).tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (3, "views=3; there are 1, 2, 4, 8"),
        ({"view": 4}, "did you mean 'views'"),
        ({"scales": [0]}, "scales=.0."),
        ({"at_once": 0}, "at_once=0"),
        (1, "set tta=None"),
        ("8", "views='8'"),
    ],
)
def test_wrong_values(given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        make_tta(given)


def test_right_values() -> None:
    assert make_tta(None) is None
    assert make_tta(4) == Tta(4)
    assert make_tta({"views": 1, "scales": [0.5, 1]}) == Tta(1, (0.5, 1.0))
