"""Focal, OHEM, Lovasz, Tversky, boundary, sums: by hand, against others' code, in bf16, gradients in fp64."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg import compat

compat.install()

from mmseg.models.losses import LovaszLoss, OhemCrossEntropy, TverskyLoss  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from spark_seg.errors import UserError  # noqa: E402
from spark_seg.models.losses import CrossEntropyDiceLoss  # noqa: E402
from spark_seg.models.losses_more import (  # noqa: E402
    DistanceBoundaryLoss,
    LossSum,
    LovaszSoftmaxLoss,
    OhemLoss,
    SoftmaxFocalLoss,
    TverskyRegionLoss,
    signed_distance,
)

IGNORE = 255
MAKE: dict[str, Callable[[], nn.Module]] = {
    "focal": SoftmaxFocalLoss,
    "focal_flat": lambda: SoftmaxFocalLoss(gamma=0.5, alpha=0.25),
    "ohem": lambda: OhemLoss(threshold=0.5, min_kept=0.2),
    "lovasz": LovaszSoftmaxLoss,
    "lovasz_batch": lambda: LovaszSoftmaxLoss(per_image=False),
    "tversky": TverskyRegionLoss,
    "boundary": DistanceBoundaryLoss,
    "sum": lambda: LossSum([{"type": "CrossEntropyDiceLoss"}, {"type": "LovaszSoftmaxLoss", "loss_weight": 0.5}]),
}  # fmt: skip


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [2, 3, 6, 5] and labels with ignored pixels; the second image lacks class 2."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 6, 5, generator=rng, dtype=torch.float64) * 2
    labels = torch.randint(0, 3, (2, 6, 5), generator=rng)
    labels[1].clamp_(max=1)
    labels[0, 0, :3] = IGNORE
    return logits.to(dtype), labels


@pytest.mark.parametrize("name", MAKE)
def test_gradient(name: str) -> None:
    logits, labels = batch()
    loss = MAKE[name]()
    assert torch.autograd.gradcheck(
        lambda x: loss(x, labels, ignore_index=IGNORE), logits.requires_grad_(), eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("name", MAKE)
def test_finite_in_bf16_and_for_hard_frames(name: str) -> None:
    loss = MAKE[name]()
    logits, labels = batch()
    exact = loss(logits, labels)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        given = logits.to(dtype).requires_grad_()
        value = loss(given, labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(exact.item(), rel=0.05, abs=0.01)
    for frame in (
        torch.full_like(labels, IGNORE),
        torch.zeros_like(labels),
        torch.full_like(labels, 2),
    ):
        for scale in (0.0, 1.0, 1e4):
            given = (logits * scale).bfloat16().requires_grad_()
            with torch.autocast("cpu", dtype=torch.bfloat16):
                value = loss(given, frame)
            value.backward()
            assert torch.isfinite(value)
            assert given.grad is not None
            assert torch.isfinite(given.grad).all()
            if (frame == IGNORE).all():
                assert value == 0
                assert not given.grad.any()


@pytest.mark.parametrize("name", MAKE)
def test_ignored_pixels_count_nowhere(name: str) -> None:
    loss = MAKE[name]()
    logits, labels = batch()
    other = logits.clone()
    other[:, :, 0, :3] = torch.where(labels[:, None, 0, :3] == IGNORE, 50.0, other[:, :, 0, :3])
    assert not torch.equal(other, logits)
    torch.testing.assert_close(loss(other, labels), loss(logits, labels))
    # another number for it, and none at all
    moved = labels.where(labels != IGNORE, 7)
    torch.testing.assert_close(loss(logits, moved, ignore_index=7), loss(logits, labels))
    whole = labels.clamp(max=2)
    torch.testing.assert_close(loss(logits, whole, ignore_index=None), loss(logits, whole))


# ---------------------------------------------------------------- focal


def test_focal_is_its_formula() -> None:
    logits, labels = batch()
    for gamma, alpha in ((0.0, None), (2.0, None), (1.5, 0.25), (2.0, [0.2, 1.0, 3.0])):
        total, count = 0.0, 0
        for b, y, x in np.ndindex(*labels.shape):
            truth = int(labels[b, y, x])
            if truth == IGNORE:
                continue
            p = logits[b, :, y, x].softmax(0)[truth].item()
            a = (
                1.0
                if alpha is None
                else alpha[truth]
                if isinstance(alpha, list)
                else 0.75
                if truth == 0
                else 0.25
            )
            total, count = total - a * (1 - p) ** gamma * math.log(p), count + 1
        assert SoftmaxFocalLoss(gamma, alpha)(logits, labels).item() == pytest.approx(total / count)
    weight = [0.5, 1.0, 2.0]
    torch.testing.assert_close(
        SoftmaxFocalLoss(0.0, class_weight=weight)(logits, labels),
        F.cross_entropy(logits, labels, torch.tensor(weight).double(), ignore_index=IGNORE),
    )


# ---------------------------------------------------------------- OHEM


def test_ohem_equals_mmsegs_where_that_is_defined() -> None:
    logits, labels = batch(torch.float32)
    valid = int((labels != IGNORE).sum())
    for threshold, kept in ((0.3, 5), (0.7, 5), (0.0, 20), (0.9, 1)):
        theirs = OhemCrossEntropy(thres=threshold, min_kept=kept)(logits, labels)
        ours = OhemLoss(threshold, kept / valid)(logits, labels)
        torch.testing.assert_close(ours, theirs)


def test_ohem_keeps_the_hardest() -> None:
    # p of the truth: 0.9, 0.6, 0.2, 0.8; below 0.7 are two, min_kept of 3/4 adds the next hardest
    p = torch.tensor([0.9, 0.6, 0.2, 0.8], dtype=torch.float64)
    logits = torch.stack([p, (1 - p) * 0.75, (1 - p) * 0.25]).log()[None, :, None]
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    hard = -(math.log(0.6) + math.log(0.2))
    assert OhemLoss(0.7, 0.25)(logits, labels).item() == pytest.approx(hard / 2)
    assert OhemLoss(0.7, 0.75)(logits, labels).item() == pytest.approx((hard - math.log(0.8)) / 3)
    # all alike and easy: something is kept, where mmseg's gives NaN
    assert (
        OhemLoss(0.5, 0.25)(
            torch.tensor([5.0, 0, 0])[None, :, None, None].expand(1, 3, 1, 4), labels
        )
        > 0
    )


# ---------------------------------------------------------------- Lovasz


@pytest.mark.parametrize("per_image", [True, False])
@pytest.mark.parametrize("weights", [None, [0.5, 1.0, 2.0]])
def test_lovasz_equals_mmsegs(per_image: bool, weights: list[float] | None) -> None:
    logits, labels = batch(torch.float32)
    theirs = LovaszLoss(
        per_image=per_image, reduction="mean" if per_image else "none", class_weight=weights
    )(logits, labels, ignore_index=IGNORE)
    ours = LovaszSoftmaxLoss(per_image, class_weight=weights)(logits, labels)
    torch.testing.assert_close(ours, theirs)


def test_lovasz_of_hard_labels_is_the_jaccard_loss() -> None:
    """At the corners of the cube the extension is the set function itself: 1 - IoU."""
    labels = torch.tensor([[[0, 0, 1, 1, 2, 2]]])
    guess = torch.tensor([[[0, 1, 1, 1, 2, 0]]])
    logits = F.one_hot(guess, 3).permute(0, 3, 1, 2).double() * 1e3
    wanted = 1 - (1 / 3 + 2 / 3 + 1 / 2) / 3
    assert LovaszSoftmaxLoss()(logits, labels).item() == pytest.approx(wanted)


# ---------------------------------------------------------------- Tversky


def test_tversky_equals_mmsegs_and_its_formula() -> None:
    logits, labels = batch()
    theirs = TverskyLoss(alpha=0.3, beta=0.7, class_weight=[1.0, 2.0, 3.0])(logits, labels)
    ours = TverskyRegionLoss(class_weight=[1.0, 2.0, 3.0])(logits, labels)
    torch.testing.assert_close(ours, theirs)
    labels = labels.where(labels != IGNORE, 0)
    p, g = logits.softmax(1), F.one_hot(labels, 3).permute(0, 3, 1, 2)
    tp, fp, fn = ((x * y).sum((2, 3)) for x, y in ((p, g), (p, 1 - g), (1 - p, g)))
    wanted = (1 - (tp + 1) / (tp + 0.2 * fp + 0.8 * fn + 1)).mean()
    torch.testing.assert_close(TverskyRegionLoss(0.2, 0.8)(logits, labels), wanted)
    with pytest.raises(UserError, match="no weight per pixel"):
        TverskyRegionLoss()(logits, labels, weight=torch.ones(2, 6, 5))


# ---------------------------------------------------------------- boundary


def test_signed_distance_is_the_papers() -> None:
    from scipy.ndimage import distance_transform_edt as edt

    rng = np.random.default_rng(0)
    mask = np.zeros((30, 40), bool)
    mask[5:20, 8:30] = True
    mask ^= rng.random(mask.shape) < 0.02
    wanted = edt(~mask) * ~mask - (edt(mask) - 1) * mask
    np.testing.assert_allclose(signed_distance(mask), wanted, atol=1e-4)
    assert not signed_distance(np.zeros((4, 5), bool)).any()
    assert not signed_distance(np.ones((4, 5), bool)).any()


def test_boundary_loss_by_hand_and_falls_towards_the_truth() -> None:
    labels = torch.zeros(1, 1, 4, dtype=torch.long)
    labels[0, 0, 1] = 1
    logits = torch.zeros(1, 3, 1, 4, dtype=torch.float64)
    # class 1: distances 1 0 1 2 over a side of 4, p = 1/3; 4 pixels and 2 classes, of which one is absent
    assert DistanceBoundaryLoss()(logits, labels).item() == pytest.approx(4 / 4 / 3 / 8)
    mask = torch.zeros(1, 32, 32, dtype=torch.long)
    mask[0, 8:20, 8:20] = 1
    values = []
    for grown in (6, 3, 0):
        guess = torch.zeros_like(mask)
        guess[0, 8 - grown : 20 + grown, 8 - grown : 20 + grown] = 1
        values.append(DistanceBoundaryLoss()(F.one_hot(guess, 3).permute(0, 3, 1, 2) * 20.0, mask).item())  # fmt: skip
    assert values[0] > values[1] > values[2]


# ---------------------------------------------------------------- sums, weights, what goes wrong


def test_a_sum_is_booked_by_parts() -> None:
    boundary = dict(type="DistanceBoundaryLoss", loss_weight=0.5)
    loss = MODELS.build(dict(type="LossSum", losses=[dict(type="CrossEntropyDiceLoss"), boundary]))
    assert [part.loss_name for part in loss] == ["loss_ce", "loss_dice", "loss_boundary"]
    logits, labels = batch()
    wanted = CrossEntropyDiceLoss()(logits, labels) + 0.5 * DistanceBoundaryLoss()(logits, labels)
    torch.testing.assert_close(loss(logits, labels), wanted)
    assert not loss.state_dict()


ALL = [SoftmaxFocalLoss, OhemLoss, LovaszSoftmaxLoss, TverskyRegionLoss, DistanceBoundaryLoss]


@pytest.mark.parametrize("cls", ALL)
def test_class_weights(cls: Any) -> None:
    logits, labels = batch()
    plain = cls()(logits, labels)
    assert not torch.isclose(cls(class_weight=[0.1, 1, 9])(logits, labels), plain)
    with pytest.raises(UserError, match="2 values, but the model has 3 classes"):
        cls(class_weight=[1.0, 2.0])(logits, labels)
    with pytest.raises(UserError, match="not all 0"):
        cls(class_weight=[0, 0, 0])
    with pytest.raises(UserError, match=r"computed by tools/train\.py"):
        cls(class_weight="computed")(logits, labels)
    with pytest.raises(UserError, match="negative"):
        cls(loss_weight=-1)


def test_class_weights_to_compute_of_ce_dice() -> None:
    with pytest.raises(UserError, match=r"computed by tools/train\.py"):
        CrossEntropyDiceLoss(class_weight="computed")(*batch())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: SoftmaxFocalLoss(gamma=-1), "gamma=-1"),
        (lambda: SoftmaxFocalLoss(alpha=1.5), "alpha=1.5"),
        (lambda: OhemLoss(threshold=2), "threshold=2"),
        (lambda: OhemLoss(min_kept=0), "min_kept=0"),
        (lambda: TverskyRegionLoss(0.5, 0.6), "add up to 1"),
        (lambda: TverskyRegionLoss(smooth=0), "smooth=0"),
        (lambda: LossSum([]), "no loss"),
    ],
)
def test_values_out_of_range(make: Callable[[], Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        make()
