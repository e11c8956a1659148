"""`CrossEntropyDiceLoss`: values by hand, against torch, gradients, frames that break losses."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor

from spark_seg.errors import UserError
from spark_seg.models.losses import CrossEntropyDiceLoss

IGNORE = 255


def batch(seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Random logits `[2, 3, 5, 4]` and labels with a few ignored pixels."""
    rng = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 3, 5, 4, generator=rng, dtype=torch.float64).to(dtype)
    labels = torch.randint(0, 3, (2, 5, 4), generator=rng)
    labels[0, 0, :3] = IGNORE
    return logits, labels


def from_probabilities(rows: list[list[float]]) -> Tensor:
    """Logits `[1, C, 1, N]` whose softmax is the given row per pixel."""
    return torch.tensor(rows, dtype=torch.float64).log().T[None, :, None, :]


def dice_only(**options: object) -> CrossEntropyDiceLoss:
    return CrossEntropyDiceLoss(ce_weight=0, dice_weight=1, **options)  # type: ignore[arg-type]


# ---------------------------------------------------------------- cross entropy equals torch's


@pytest.mark.parametrize("class_weight", [None, [0.2, 1.0, 3.5]])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_cross_entropy_equals_torch(
    class_weight: list[float] | None, label_smoothing: float
) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    ours = CrossEntropyDiceLoss(1.0, 0, class_weight, label_smoothing)(logits, labels)
    (our_grad,) = torch.autograd.grad(ours, logits)
    theirs = F.cross_entropy(
        logits,
        labels,
        None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64),
        ignore_index=IGNORE,
        label_smoothing=label_smoothing,
    )
    (their_grad,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    torch.testing.assert_close(our_grad, their_grad, rtol=1e-12, atol=1e-15)


def test_class_weights_are_normalised() -> None:
    logits, labels = batch()
    one = CrossEntropyDiceLoss(1.0, 0, [1, 2, 4])(logits, labels)
    torch.testing.assert_close(one, CrossEntropyDiceLoss(1.0, 0, [10, 20, 40])(logits, labels))


def test_cross_entropy_by_hand() -> None:
    # Two pixels, p(truth) = 1/2 and 1/4: (ln 2 + ln 4) / 2; with weights 1 and 3: (ln 2 + 3 ln 4) /
    # 4.
    logits = from_probabilities([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]])
    labels = torch.tensor([[[0, 1]]])
    loss = CrossEntropyDiceLoss(1.0, 0)(logits, labels)
    assert loss.item() == pytest.approx(1.5 * math.log(2), rel=1e-12)
    loss = CrossEntropyDiceLoss(1.0, 0, [1, 3, 1])(logits, labels)
    assert loss.item() == pytest.approx(7 / 4 * math.log(2), rel=1e-12)


# ---------------------------------------------------------------- Dice by hand


def test_dice_by_hand() -> None:
    # Truth 0 0 1 2. Class 0: overlap .5 + .25, p 1.25, g 2; class 1: .5, 1.25, 1; class 2: .75,
    # 1.5, 1.
    logits = from_probabilities(
        [[0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.25, 0.5, 0.25], [0.25, 1e-300, 0.75]]
    )
    labels = torch.tensor([[[0, 0, 1, 2]]])
    terms = [1 - 2 * 0.75 / 3.25, 1 - 2 * 0.5 / 2.25, 1 - 2 * 0.75 / 2.5]
    assert dice_only(smooth=0)(logits, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    terms = [1 - (1.5 + 1) / 4.25, 1 - (1 + 1) / 3.25, 1 - (1.5 + 1) / 3.5]
    assert dice_only()(logits, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    foreground = dice_only(include_background=False)(logits, labels)
    assert foreground.item() == pytest.approx(sum(terms[1:]) / 2, rel=1e-12)


def test_dice_of_absent_classes() -> None:
    # Truth 0 0. Class 0: overlap 1.25 of p 1.25 and g 2. Classes 1 and 2: p .375, A = .5 * 2
    # pixels.
    logits = from_probabilities([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125]])
    labels = torch.tensor([[[0, 0]]])
    terms = [1 - 2 * 1.25 / 3.25, 0.375 / 1.375, 0.375 / 1.375]
    loss = dice_only(smooth=0, absent_area=0.5)(logits, labels)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-12)
    loss = dice_only(smooth=0, absent_area=0.5, include_background=False)(logits, labels)
    assert loss.item() == pytest.approx(terms[1], rel=1e-12)
    # An ignored pixel is no valid pixel: the same again.
    logits = from_probabilities([[0.5, 0.25, 0.25], [0.75, 0.125, 0.125], [0.1, 0.1, 0.8]])
    labels = torch.tensor([[[0, 0, IGNORE]]])
    loss = dice_only(smooth=0, absent_area=0.5)(logits, labels)
    assert loss.item() == pytest.approx(sum(terms) / 3, rel=1e-12)


def test_dice_over_image_and_batch() -> None:
    # Image one: truth 0, p = .5 .25 .25. Image two: truth 1, p = .125 .75 .125. A = 1 pixel an
    # image.
    first = from_probabilities([[0.5, 0.25, 0.25]])
    second = from_probabilities([[0.125, 0.75, 0.125]])
    logits, labels = torch.cat([first, second]), torch.tensor([[[0]], [[1]]])
    one = [1 - 1 / 1.5, 0.25 / 1.25, 0.25 / 1.25]
    two = [0.125 / 1.125, 1 - 1.5 / 1.75, 0.125 / 1.125]
    loss = dice_only(smooth=0, absent_area=1)(logits, labels)
    assert loss.item() == pytest.approx(sum(one + two) / 6, rel=1e-12)
    pooled = [1 - 1 / 1.625, 1 - 1.5 / 2, 0.375 / 2.375]
    loss = dice_only(smooth=0, absent_area=1, dice_over="batch")(logits, labels)
    assert loss.item() == pytest.approx(sum(pooled) / 3, rel=1e-12)


def test_ignored_image_is_in_no_average() -> None:
    logits, labels = batch()
    labels[0] = IGNORE
    loss = dice_only()
    torch.testing.assert_close(loss(logits, labels), loss(logits[1:], labels[1:]))


def test_perfect_prediction_costs_nothing() -> None:
    labels = batch()[1]
    logits = 1e4 * F.one_hot(labels.where(labels != IGNORE, 0), 3).permute(0, 3, 1, 2).float()
    for over in ("image", "batch"):
        assert CrossEntropyDiceLoss(dice_over=over)(logits, labels).item() == 0


# ---------------------------------------------------------------- ignored pixels, pixel weights


@pytest.mark.parametrize("over", ["image", "batch"])
def test_ignored_pixels_do_not_exist(over: str) -> None:
    logits, labels = batch()
    logits.requires_grad_()
    loss = CrossEntropyDiceLoss(class_weight=[1, 2, 3], dice_over=over)
    value = loss(logits, labels)
    (grad,) = torch.autograd.grad(value, logits)
    ignored = (labels == IGNORE)[:, None].expand_as(logits)
    assert grad[ignored].abs().max() == 0
    assert grad[~ignored].abs().min() > 0
    other = logits.detach().masked_fill(ignored, 50.0)
    torch.testing.assert_close(loss(other, labels), value.detach())
    # A label of its own, and none at all.
    moved = labels.where(labels != IGNORE, 2)
    assert loss(logits, moved, ignore_index=2).item() != pytest.approx(value.item())
    assert loss(logits, moved, ignore_index=None).item() != pytest.approx(value.item())


def test_pixel_weight_zero_is_ignored() -> None:
    logits, labels = batch()
    weight = (labels != IGNORE).double()
    filled = labels.where(labels != IGNORE, 1)
    loss = CrossEntropyDiceLoss(label_smoothing=0.1)
    torch.testing.assert_close(loss(logits, filled, weight=weight), loss(logits, labels))


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("over", ["image", "batch"])
@pytest.mark.parametrize("background", [True, False])
def test_gradient_against_finite_differences(over: str, background: bool) -> None:
    logits, labels = batch()
    labels[1][labels[1] == 2] = 0  # a frame without panel
    loss = CrossEntropyDiceLoss(
        class_weight=[0.3, 1, 2],
        label_smoothing=0.05,
        dice_over=over,
        include_background=background,
    )
    assert torch.autograd.gradcheck(lambda x: loss(x, labels), logits.requires_grad_())


LABELS = {
    "no panel": torch.tensor([0, 1]).repeat(2, 64, 32),
    "background only": torch.zeros(2, 64, 64, dtype=torch.long),
    "one without anything": torch.stack(
        [torch.zeros(64, 64, dtype=torch.long), torch.arange(4096).reshape(64, 64) % 3]
    ),
    "everything ignored": torch.full((2, 64, 64), IGNORE),
    "one ignored": torch.stack(
        [torch.full((64, 64), IGNORE), torch.arange(4096).reshape(64, 64) % 3]
    ),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("over", ["image", "batch"])
def test_finite_value_and_gradient(name: str, dtype: torch.dtype, scale: float, over: str) -> None:
    rng = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 3, 64, 64, generator=rng).sign() * scale
    logits = logits.to(dtype).requires_grad_()
    for options in ({}, {"class_weight": [0.0, 1, 2]}, {"smooth": 0.0}):
        value = CrossEntropyDiceLoss(dice_over=over, **options)(logits, LABELS[name])
        assert value.dtype == torch.float32
        (grad,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert grad.isfinite().all()
        if name == "everything ignored":
            assert value == 0
            assert grad.abs().max() == 0
        elif scale == 1 and not options:
            assert grad.abs().max() > 0


def test_absent_class_has_neither_cliff_nor_plateau() -> None:
    # A craft of body only; some background pixels are taken for panel, from the last one to 1 %.
    labels = torch.zeros(1, 256, 256, dtype=torch.long)
    labels[:, :64, :64] = 1
    slopes = []
    for wrong in (1, 100, 655):
        logits = 8 * F.one_hot(labels, 3).permute(0, 3, 1, 2).double().contiguous()
        logits.view(3, -1)[:, -wrong:] = torch.tensor([0, 0, 4], dtype=torch.float64)[:, None]
        logits.requires_grad_()
        (grad,) = torch.autograd.grad(dice_only()(logits, labels), logits)
        slopes += grad[0, 2].flatten()[-wrong:].tolist()
        assert grad.abs().max() < 1 / (0.02 * 256 * 256)
    assert min(slopes) > 0
    assert max(slopes) < 3 * min(slopes)


# ---------------------------------------------------------------- precision


def test_half_logits_are_summed_in_fp32() -> None:
    # 512 x 512 pixels: neither bf16 nor fp16 can count them.
    rng = torch.Generator().manual_seed(2)
    labels = torch.randint(0, 3, (1, 512, 512), generator=rng)
    logits = torch.randn(1, 3, 512, 512, generator=rng)
    for dtype in (torch.bfloat16, torch.float16):
        half = logits.to(dtype)
        exact = CrossEntropyDiceLoss()(half.double(), labels)
        assert exact.dtype == torch.float64
        value = CrossEntropyDiceLoss()(half, labels)
        assert value.item() == pytest.approx(exact.item(), rel=1e-5)


def test_autocast_does_not_lower_the_sums() -> None:
    logits, labels = batch(dtype=torch.float32)
    plain = CrossEntropyDiceLoss()(logits, labels)
    with torch.autocast("cpu", torch.bfloat16):
        cast = CrossEntropyDiceLoss()(logits, labels)
    assert cast.dtype == torch.float32
    assert cast == plain


# ---------------------------------------------------------------- options


def test_parts_add_up() -> None:
    logits, labels = batch()
    both = CrossEntropyDiceLoss(0.3, 2.0)(logits, labels)
    ce, dice = CrossEntropyDiceLoss(1, 0)(logits, labels), dice_only()(logits, labels)
    torch.testing.assert_close(both, 0.3 * ce + 2 * dice)
    assert len(CrossEntropyDiceLoss(1, 0)) == len(dice_only()) == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"ce_weight": 0, "dice_weight": 0}, "both 0"),
        ({"ce_weight": -1}, "ce_weight=-1"),
        ({"dice_weight": -0.5}, "dice_weight=-0.5"),
        ({"dice_weight": math.nan}, "dice_weight=nan"),
        ({"smooth": -1.0}, "smooth=-1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"absent_area": 0.0}, "absent_area=0.0"),
        ({"dice_over": "pixel"}, "'image' or 'batch'"),
        ({"class_weight": [1, -1, 1]}, "class_weight"),
        ({"class_weight": [0, 0, 0]}, "class_weight"),
    ],
)
def test_wrong_options(options: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        CrossEntropyDiceLoss(**options)


def test_wrong_number_of_class_weights() -> None:
    with pytest.raises(UserError, match="has 2 values, but the model has 3 classes"):
        CrossEntropyDiceLoss(class_weight=[1, 2])(*batch())


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 1, 5, 4), (1, 5, 4)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"\[B, H, W\]"):
        CrossEntropyDiceLoss()(batch()[0], torch.zeros(shape, dtype=torch.long))


def test_nothing_in_checkpoints() -> None:
    loss = CrossEntropyDiceLoss(class_weight=[1, 2, 3])
    assert loss.state_dict() == {}
    logits, labels = batch()
    assert copy.deepcopy(loss)(logits, labels) == loss(logits, labels)


# ---------------------------------------------------------------- in mmseg


def train_losses(model: torch.nn.Module, labels: Tensor) -> dict[str, Tensor]:
    """What mmseg's own segmentor returns in a training step on `[B, H, W]` labels."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    inputs = torch.rand(len(labels), 3, *labels.shape[1:])
    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    return model.loss(inputs, samples)  # type: ignore[operator]


def test_both_parts_logged_and_counted_once(build_model) -> None:
    torch.manual_seed(0)
    model = build_model("b0")
    losses = train_losses(model, LABELS["one without anything"])
    total, logged = model.parse_losses(losses)
    assert set(logged) == {"loss", "decode.loss_ce", "decode.loss_dice", "decode.acc_seg"}
    assert logged["loss"] == total
    torch.testing.assert_close(total, logged["decode.loss_ce"] + logged["decode.loss_dice"])
    # The logged parts carry their weights: CE of an untrained net is near ln 3, Dice near 1/2.
    assert logged["decode.loss_ce"].item() == pytest.approx(0.5 * math.log(3), abs=0.15)
    assert 0.1 < logged["decode.loss_dice"].item() < 0.5
    total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_total_equals_the_loss_called_directly(build_model) -> None:
    model = build_model("b0").eval()
    head, labels = model.decode_head, LABELS["no panel"]
    logits = torch.randn(2, 3, 16, 16)
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [SegDataSample(gt_sem_seg=PixelData(data=label[None])) for label in labels]
    total, _ = model.parse_losses(head.loss_by_feat(logits, samples))
    resized = F.interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)
    direct = MODELS.build({"type": "CrossEntropyDiceLoss"})(resized, labels)
    torch.testing.assert_close(total, direct)
