"""Cross entropy plus soft Dice, as one registered loss with both parts in the training log.

Shapes: `B` images, `C` classes, `H W` pixels of the labels.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmseg.registry import MODELS
from torch import Tensor, nn

from spark_seg.errors import UserError

DICE_OVER = ("image", "batch")
NOT_COMPUTED = (
    "class weights from the data are computed by tools/train.py, and were not: give numbers"
)


def _full_precision(logits: Tensor) -> Tensor:
    """bf16 and fp16 logits as fp32 (they cannot count a frame's pixels); others as they are."""
    return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits


def _pixel_weights(
    logits: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int | None
) -> tuple[Tensor, Tensor]:
    """Labels `[B, H, W]` int64, ignored ones moved to 0, and weights `[B, H, W]`, 0 there."""
    if logits.ndim != 4 or logits.shape[1] < 2 or labels.shape != logits[:, 0].shape:
        raise ValueError(
            f"expected logits [B, C >= 2, H, W] and labels [B, H, W], got {tuple(logits.shape)} "
            f"and {tuple(labels.shape)}"
        )
    labels = labels.long()
    valid = torch.ones_like(labels, dtype=torch.bool)
    if ignore_index is not None:
        valid = labels != ignore_index
        labels = labels.where(valid, 0)
    weights = valid.to(logits.dtype)
    return labels, weights if weight is None else weights * weight.to(logits.dtype)


class CrossEntropyPart(nn.Module):
    """The cross entropy of `CrossEntropyDiceLoss`: `scale` times torch's weighted mean.

    See `CrossEntropyDiceLoss` for the arguments.
    """

    loss_name = "loss_ce"

    def __init__(
        self,
        scale: float = 1.0,
        class_weight: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.label_smoothing = label_smoothing
        self.to_compute = class_weight if isinstance(class_weight, str) else None
        if isinstance(class_weight, str):
            class_weight = None
        # Not persistent: a checkpoint holds the network, not the recipe. fp64, so that no digit of
        # the config is lost.
        weights = None if class_weight is None else torch.tensor(class_weight, dtype=torch.float64)
        self.register_buffer("class_weight", weights, persistent=False)
        self.class_weight: Tensor | None

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """Shapes as in `CrossEntropyDiceLoss.forward`; a scalar, 0 where everything is ignored."""
        classes = logits.shape[1]
        if self.to_compute:
            raise UserError(f"class_weight={self.to_compute!r}: {NOT_COMPUTED}")
        if self.class_weight is not None and len(self.class_weight) != classes:
            raise UserError(
                f"class_weight has {len(self.class_weight)} values, but the model has {classes} "
                "classes: give one weight per class"
            )
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_precision(logits)
            labels, pixels = _pixel_weights(logits, labels, weight, ignore_index)
            per_class = None if self.class_weight is None else self.class_weight.to(logits)
            per_pixel = F.cross_entropy(
                logits,
                labels,
                weight=per_class,
                reduction="none",
                label_smoothing=self.label_smoothing,
            )
            mass = pixels if per_class is None else pixels * per_class[labels]
            total = mass.sum()
            # torch's own mean is 0/0 where nothing counts.
            total = total.where(total > 0, torch.ones_like(total))
            return self.scale * (per_pixel * pixels).sum() / total


class DicePart(nn.Module):
    """The Dice part of `CrossEntropyDiceLoss`; its value is `scale` times the mean of `1 - Dice`.

    See `CrossEntropyDiceLoss` for the arguments.
    """

    loss_name = "loss_dice"

    def __init__(
        self,
        scale: float = 1.0,
        over: str = "image",
        smooth: float = 1.0,
        include_background: bool = True,
        absent_area: float = 0.02,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.over = over
        self.smooth = smooth
        self.include_background = include_background
        self.absent_area = absent_area

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """Shapes as in `CrossEntropyDiceLoss.forward`; a scalar, 0 where everything is ignored."""
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_precision(logits)
            labels, pixels = _pixel_weights(logits, labels, weight, ignore_index)
            pixels = pixels[:, None]
            # Truth and prediction are 0 where ignored, so such pixels enter no sum below.
            truth = torch.zeros_like(logits).scatter_(1, labels[:, None], pixels)
            probs = logits.softmax(1)
            axes = (0, 2, 3) if self.over == "batch" else (2, 3)
            overlap = (probs * truth).sum(axes)  # [B, C], or [C] over the batch
            predicted, true = (probs * pixels).sum(axes), truth.sum(axes)
            if not self.include_background:
                overlap, predicted, true = overlap[..., 1:], predicted[..., 1:], true[..., 1:]
            area = pixels.sum(axes)  # valid pixels, [B, 1] or [1]
            smooth = torch.full_like(true, self.smooth).where(true > 0, self.absent_area * area)
            # 1 - Dice in one fraction: exact near Dice = 1, where the difference would cancel.
            missed = predicted + true - 2 * overlap
            counted = (area > 0).expand_as(true)
            size = (predicted + true + smooth).where(counted, torch.ones_like(true))
            return self.scale * (missed / size).sum() / counted.sum().clamp(min=1)


@MODELS.register_module()
class CrossEntropyDiceLoss(nn.ModuleList):
    """`ce_weight * CE + dice_weight * Dice`, for mmseg's decode heads.

    It is a list of its two parts. mmseg's `loss_by_feat` walks through a list of losses and books
    each under its own name, so the log shows `loss_ce` and `loss_dice` **with their weights in**,
    and mmengine's `parse_losses` adds each once: `loss = loss_ce + loss_dice`. A part of weight 0
    is neither computed nor logged. Called directly, the loss returns that same sum.

    **Cross entropy** is torch's: with class weights `w` the mean is `sum(w[y] * nll) / sum(w[y])`
    over the pixels that are not ignored (dividing by the sum of the weights, so that scaling all of
    them changes nothing); label smoothing (Szegedy et al. 2016, arXiv:1512.00567) is spread over
    all classes as torch does.

    **Dice** (Milletari et al. 2016, V-Net, arXiv:1606.04797; the denominator with plain sums as in
    Sudre et al. 2017, arXiv:1707.03237) on softmax probabilities `p` and one-hot truth `g`, for
    each class, over each image or over the batch: `1 - (2 sum(p g) + smooth) / (sum(p) + sum(g) +
    smooth)`, averaged over all (image, class) pairs, or over the classes where `dice_over='batch'`.
    Ignored pixels are in none of the sums; an image ignored altogether is in no average.

    **A class absent from the truth** of an image (of the batch) has `absent_area` times its valid
    pixels in the place of `smooth`: with `A` for that number its term is `sum(p) / (sum(p) + A)`.
    About 18 % of the frames show no panel. With a `smooth` of a pixel their term is close to 1 with
    hardly any gradient while some hundred pixels are wrong, then a cliff of slope `1 / smooth` for
    the last one; left out of the mean, the panel becomes a class to which doubtful pixels can be
    given for nothing. With `A` the term is 0 for a right answer and its slope is at most
    `1 / A`. The default 0.02 makes a false pixel cost what it costs (`1 / (sum(p) + sum(g))`) where
    the part is there and well found on 1 % of the frame, which is about the mean share of panel.

    Sums run in fp32 under autocast and for bf16 and fp16 logits, in fp64 for fp64. Value and
    gradient are finite for any finite logits, also where everything is ignored (both 0). Nothing
    here waits for the device.

    Args:
        ce_weight: Weight of the cross entropy, >= 0.
        dice_weight: Weight of Dice, >= 0; not both 0.
        class_weight: One weight >= 0 per class for the cross entropy, or None. A word stands for weights that are
            computed from the data before training begins (`class_weights` in a config).
        label_smoothing: For the cross entropy, 0 to 1 (1 excluded).
        dice_over: `image` (each frame counts alike, small craft as much as large ones) or `batch`.
        smooth: Dice's smoothing in pixels, >= 0.
        include_background: Whether class 0 has a Dice of its own. Default yes: it is where a part
            predicted on empty sky costs Dice.
        absent_area: Share of the valid pixels that smooths the Dice of an absent class, > 0 to 1.

    Raises:
        UserError: For values out of range; in the first step for as many class weights as there are
            no classes.
    """

    def __init__(
        self,
        ce_weight: float = 0.5,
        dice_weight: float = 0.5,
        class_weight: Sequence[float] | str | None = None,
        label_smoothing: float = 0.0,
        dice_over: str = "image",
        smooth: float = 1.0,
        include_background: bool = True,
        absent_area: float = 0.02,
    ) -> None:
        for name, value in (
            ("ce_weight", ce_weight),
            ("dice_weight", dice_weight),
            ("smooth", smooth),
        ):
            if not 0 <= value < float("inf"):
                raise UserError(f"CrossEntropyDiceLoss: {name}={value} is negative or not finite")
        if ce_weight == dice_weight == 0:
            raise UserError("CrossEntropyDiceLoss: ce_weight and dice_weight are both 0: no loss")
        if not 0 <= label_smoothing < 1:
            raise UserError(f"CrossEntropyDiceLoss: label_smoothing={label_smoothing}, not in 0..1")
        if dice_over not in DICE_OVER:
            raise UserError(
                f"CrossEntropyDiceLoss: dice_over={dice_over!r}, choose 'image' or 'batch'"
            )
        if not 0 < absent_area <= 1:
            raise UserError(f"CrossEntropyDiceLoss: absent_area={absent_area}, not over 0 to 1")
        numbers = None if isinstance(class_weight, str) else class_weight
        if numbers is not None and (
            any(not 0 <= w < float("inf") for w in numbers) or not any(numbers)
        ):
            raise UserError(
                f"CrossEntropyDiceLoss: class_weight={list(numbers)} needs finite values "
                ">= 0, not all 0"
            )
        parts: list[nn.Module] = []
        if ce_weight:
            parts.append(CrossEntropyPart(ce_weight, class_weight, label_smoothing))
        if dice_weight:
            parts.append(DicePart(dice_weight, dice_over, smooth, include_background, absent_area))
        super().__init__(parts)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """The sum of both parts.

        Args:
            logits: `[B, C, H, W]`, any float dtype, C >= 2.
            labels: `[B, H, W]`, integer, 0..C-1 or `ignore_index`.
            weight: A weight per pixel `[B, H, W]` for both parts (mmseg's pixel samplers), or None.
            ignore_index: Label of pixels that count nowhere; None for no such label.

        Returns:
            A scalar, fp64 for fp64 logits, otherwise fp32.
        """
        values = [part(logits, labels, weight=weight, ignore_index=ignore_index) for part in self]
        return torch.stack(values).sum()
