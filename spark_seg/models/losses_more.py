"""Losses beside CE + Dice: focal, OHEM, Lovasz, Tversky, boundary, and sums of any of them.

mmseg's own are used where they do what they say: Tversky is. Its focal loss picks the wrong column of the one-hot truth
on the CPU and needs mmcv's compiled operator on a GPU; its OHEM is not callable by a decode head (`weight`,
`ignore_index`) and gives NaN where all pixels tie; its Lovasz fails in fp64 and on a frame that is ignored altogether.

All of them: logits [B, C, H, W] of any float dtype, C >= 2; labels [B, H, W], 0..C-1 or `ignore_index`; sums in fp32
(fp64 for fp64 logits); a scalar, finite with finite gradients, 0 where everything is ignored.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spark_seg import compat

compat.install()  # mmseg.models does not import with mmcv-lite otherwise

from mmseg.models.losses import TverskyLoss  # noqa: E402
from mmseg.registry import MODELS  # noqa: E402

from spark_seg.errors import UserError  # noqa: E402
from spark_seg.models.losses import NOT_COMPUTED, _full_precision, _pixel_weights  # noqa: E402

ClassWeight = Sequence[float] | str | None


class WeightedLoss(nn.Module):
    """What these losses share: a name in the log, a factor, weights by class.

    Args:
        loss_weight: Factor of the loss.
        class_weight: One weight >= 0 per class, or None; a word says how to compute them from the data, which is done
            before training begins (`spark_seg.models.losses_weights`).

    Raises:
        UserError: For values out of range.
    """

    loss_name: str

    def __init__(self, loss_weight: float = 1.0, class_weight: ClassWeight = None) -> None:
        super().__init__()
        _not_negative(self, loss_weight=loss_weight)
        self.loss_weight = loss_weight
        numbers = None if isinstance(class_weight, str) else class_weight
        if numbers is not None and (
            any(not 0 <= w < float("inf") for w in numbers) or not any(numbers)
        ):
            raise UserError(
                f"{type(self).__name__}: class_weight={list(numbers)} needs finite values >= 0, not all 0"
            )
        self.to_compute = class_weight if isinstance(class_weight, str) else None
        weights = None if numbers is None else torch.tensor(numbers, dtype=torch.float64)
        self.register_buffer("class_weight", weights, persistent=False)
        self.class_weight: Tensor | None

    def per_class(self, logits: Tensor) -> Tensor | None:
        """The class weights [C] in the logits' dtype.

        Raises:
            UserError: As many weights as there are no classes, or weights that were never computed.
        """
        if self.to_compute:
            raise UserError(f"class_weight={self.to_compute!r}: {NOT_COMPUTED}")
        if self.class_weight is None:
            return None
        if len(self.class_weight) != logits.shape[1]:
            raise UserError(
                f"class_weight has {len(self.class_weight)} values, but the model has {logits.shape[1]} classes: "
                "give one weight per class"
            )
        return self.class_weight.to(logits)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """The loss, a scalar.

        Args:
            logits: See the module; also the labels.
            labels: See the module.
            weight: A weight per pixel [B, H, W] (mmseg's pixel samplers), or None.
            ignore_index: Label of pixels that count nowhere; None for no such label.
        """
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_precision(logits)
            labels, pixels = _pixel_weights(logits, labels, weight, ignore_index)
            return self.loss_weight * self.compute(logits, labels, pixels)

    def compute(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        """The loss of whole-precision logits, labels 0..C-1, and weights [B, H, W] that are 0 where ignored."""
        raise NotImplementedError


@MODELS.register_module()
class SoftmaxFocalLoss(WeightedLoss):
    """Focal loss (Lin et al. 2017, arXiv:1708.02002) on softmax: the mean of `-a (1 - p)^gamma log p`, p of the truth.

    With `gamma=0` and no alpha it is cross entropy. The mean is over the pixels that count; with `class_weight` it is
    the weighted mean that torch's cross entropy takes.

    Args:
        gamma: How much well classified pixels are played down, >= 0.
        alpha: Factor by class: one number a in (0, 1) gives the background 1 - a and every part a, as in the paper;
            a list gives one number per class; None is 1 for all.
        loss_weight: See `WeightedLoss`.
        class_weight: See `WeightedLoss`.
    """

    loss_name = "loss_focal"

    def __init__(
        self,
        gamma: float = 2.0,
        alpha: float | Sequence[float] | None = None,
        loss_weight: float = 1.0,
        class_weight: ClassWeight = None,
    ) -> None:
        super().__init__(loss_weight, class_weight)
        _not_negative(self, gamma=gamma)
        numbers = [alpha] if isinstance(alpha, int | float) else list(alpha or ())
        if any(not 0 <= a < float("inf") for a in numbers) or (
            isinstance(alpha, int | float) and not 0 < alpha < 1
        ):
            raise UserError(
                f"SoftmaxFocalLoss: alpha={alpha} needs a number between 0 and 1, or one >= 0 for each class"
            )
        self.gamma, self.alpha = gamma, alpha

    def compute(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none")
        # 1 - p without cancellation; not below what keeps the slope of a power under 1 finite
        missed = -torch.expm1(-nll)
        per_pixel = missed.clamp(min=1e-12) ** self.gamma * nll
        if self.alpha is not None:
            per_pixel = per_pixel * self._alpha(logits)[labels]
        weights = self.per_class(logits)
        mass = pixels if weights is None else pixels * weights[labels]
        return (per_pixel * mass).sum() / _or_one(mass.sum())

    def _alpha(self, logits: Tensor) -> Tensor:
        classes = logits.shape[1]
        if isinstance(self.alpha, int | float):
            return logits.new_tensor([1 - self.alpha] + [self.alpha] * (classes - 1))
        if len(self.alpha or ()) != classes:
            raise UserError(f"alpha={self.alpha}: the model has {classes} classes, give one each")
        return logits.new_tensor(list(self.alpha or ()))


@MODELS.register_module()
class OhemLoss(WeightedLoss):
    """Cross entropy over the hardest pixels (online hard example mining; Shrivastava et al. 2016, arXiv:1604.03540).

    Pixels whose truth has a probability below `threshold` count, and at least the share `min_kept` of all pixels, those
    of the smallest probability. The mean is over the pixels kept, weighted by class as torch does.

    Args:
        threshold: Probability, 0 to 1.
        min_kept: Share of the batch's valid pixels that is always kept, over 0 to 1.
        loss_weight: See `WeightedLoss`.
        class_weight: See `WeightedLoss`.
    """

    loss_name = "loss_ohem"

    def __init__(
        self,
        threshold: float = 0.7,
        min_kept: float = 1 / 16,
        loss_weight: float = 1.0,
        class_weight: ClassWeight = None,
    ) -> None:
        super().__init__(loss_weight, class_weight)
        if not 0 <= threshold <= 1 or not 0 < min_kept <= 1:
            raise UserError(
                f"OhemLoss: threshold={threshold} and min_kept={min_kept} are shares, 0 to 1 (min_kept above 0)"
            )
        self.threshold, self.min_kept = threshold, min_kept

    def compute(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        nll = F.cross_entropy(logits, labels, reduction="none").flatten()
        counts, flat = (pixels > 0).flatten(), pixels.flatten()
        # Ignored pixels sort last. The number kept stays on the device: nothing waits for it.
        order = nll.detach().masked_fill(~counts, -1.0).argsort(descending=True)
        hard = ((-nll.detach()).exp() < self.threshold) & counts
        kept = torch.maximum(hard.sum(), (self.min_kept * counts.sum()).ceil())
        place = torch.arange(len(order), device=nll.device)
        weights = self.per_class(logits)
        mass = flat if weights is None else flat * weights[labels.flatten()]
        mass = mass[order] * (place < kept)
        return (nll[order] * mass).sum() / _or_one(mass.sum())


@MODELS.register_module()
class LovaszSoftmaxLoss(WeightedLoss):
    """Lovasz-Softmax (Berman et al. 2018, arXiv:1705.08790): a surrogate of 1 - IoU, averaged over the classes present.

    Best beside a loss per pixel (`loss='ce+lovasz'`); it equals mmseg's `LovaszLoss` where that is defined.

    Args:
        per_image: Over each image (and the mean of them) rather than over the batch.
        loss_weight: See `WeightedLoss`.
        class_weight: Factor of each class' term; see `WeightedLoss`.
    """

    loss_name = "loss_lovasz"

    def __init__(
        self,
        per_image: bool = True,
        loss_weight: float = 1.0,
        class_weight: ClassWeight = None,
    ) -> None:
        super().__init__(loss_weight, class_weight)
        self.per_image = per_image

    def compute(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        classes = logits.shape[1]
        probs = logits.softmax(1).transpose(0, 1).flatten(2)  # [C, B, N]
        truth = F.one_hot(labels, classes).permute(3, 0, 1, 2).flatten(2)
        valid = (pixels > 0).flatten(1).expand_as(truth)
        if not self.per_image:
            probs, truth, valid = (x.flatten(1)[:, None] for x in (probs, truth, valid))
        # An ignored pixel is no error and no truth: sorted last, it changes no term.
        truth = truth * valid
        errors, order = ((truth - probs).abs() * valid).sort(dim=-1, descending=True)
        # A valid pixel without error may sort among the ignored ones; its own error of 0 makes its place irrelevant.
        slopes = _lovasz_slopes(truth.gather(-1, order)).to(probs.dtype)
        terms = (errors * slopes).sum(-1)  # [C, B]
        present = truth.sum(-1) > 0
        weights = self.per_class(logits)
        factors = present if weights is None else present * weights[:, None]
        each = (terms * factors).sum(0) / present.sum(0).clamp(min=1)
        counted = present.any(0)
        return each.sum() / counted.sum().clamp(min=1)


def _lovasz_slopes(truth: Tensor) -> Tensor:
    """The gradient of the Lovasz extension of 1 - IoU, of truths [..., N] sorted by error (the paper's algorithm 1)."""
    # Integers: exact for frames of any size, and cumsum of floats has no deterministic kernel on a GPU.
    total = truth.sum(-1, keepdim=True)
    left = total - truth.cumsum(-1)
    union = total + (1 - truth).cumsum(-1)
    jaccard = 1 - left.double() / union.clamp(min=1)
    return torch.diff(jaccard, dim=-1, prepend=torch.zeros_like(jaccard[..., :1]))


@MODELS.register_module()
class TverskyRegionLoss(TverskyLoss):
    """mmseg's Tversky loss (Salehi et al. 2017, arXiv:1706.05721) in full precision, with the head's ignore index.

    For each class and image `1 - (TP + s) / (TP + alpha FP + beta FN + s)`; a beta above one half asks for recall.

    Args:
        alpha: Weight of false positives, 0 to 1.
        beta: Weight of false negatives; alpha + beta = 1.
        smooth: In pixels, > 0.
        loss_weight: See `WeightedLoss`.
        class_weight: Factor of each class' term; see `WeightedLoss`.
    """

    def __init__(
        self,
        alpha: float = 0.3,
        beta: float = 0.7,
        smooth: float = 1.0,
        loss_weight: float = 1.0,
        class_weight: ClassWeight = None,
    ) -> None:
        if not 0 <= alpha <= 1 or abs(alpha + beta - 1) > 1e-9:
            raise UserError(f"TverskyRegionLoss: alpha={alpha} and beta={beta} must add up to 1")
        if not 0 < smooth < float("inf"):
            raise UserError(f"TverskyRegionLoss: smooth={smooth}, not above 0")
        # 1 - alpha: upstream wants the sum to be 1.0 to the last bit
        super().__init__(smooth=smooth, alpha=alpha, beta=1 - alpha, loss_weight=loss_weight)
        self.checked = WeightedLoss(loss_weight, class_weight)
        numbers = self.checked.class_weight
        self.class_weight = None if numbers is None else numbers.tolist()

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """As `WeightedLoss.forward`.

        Raises:
            UserError: For a weight per pixel, of which this loss knows nothing.
        """
        if weight is not None:
            raise UserError("TverskyRegionLoss takes no weight per pixel: leave the sampler out")
        with torch.autocast(logits.device.type, enabled=False):
            logits = _full_precision(logits)
            self.ignore_index = -1 if ignore_index is None else ignore_index
            self.checked.per_class(logits)  # as many as there are classes
            return super().forward(logits, labels)


@MODELS.register_module()
class DistanceBoundaryLoss(WeightedLoss):
    """Boundary loss (Kervadec et al. 2019, arXiv:1812.07032): the mean of probability times signed distance.

    For every part (not the background) the distance to its true outline, negative inside, in shares of the picture's
    longer side; 0 for a part that the frame does not show. It knows no region, so it goes beside a loss that does:
    `loss='ce_dice+0.5*boundary'`. May be negative. Distances are made on the CPU: the labels of a step are fetched.

    Args:
        loss_weight: See `WeightedLoss`.
        class_weight: Factor of each class' distance (the background's is not used); see `WeightedLoss`.
    """

    loss_name = "loss_boundary"

    def compute(self, logits: Tensor, labels: Tensor, pixels: Tensor) -> Tensor:
        classes = logits.shape[1]
        truth = labels.masked_fill(pixels == 0, 0).to(torch.uint8).cpu().numpy()
        maps = np.stack([[signed_distance(t == c) for c in range(1, classes)] for t in truth])
        distance = torch.from_numpy(maps).to(logits) / max(labels.shape[-2:])  # [B, C - 1, H, W]
        weights = self.per_class(logits)
        if weights is not None:
            distance = distance * weights[1:, None, None]
        product = (logits.softmax(1)[:, 1:] * distance * pixels[:, None]).sum()
        return product / _or_one(pixels.sum() * (classes - 1))


def signed_distance(mask: np.ndarray) -> np.ndarray:
    """Euclidean distance in pixels, fp32 [H, W], to the nearest pixel of a mask; inside `1 -` that to the outside.

    So it is 0 on the mask's outermost pixels, as in the paper's code; 0 everywhere where the mask is empty.
    """
    inside = mask.astype(np.uint8)
    if not inside.any():
        return np.zeros(mask.shape, np.float32)
    exact = (cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    outer = cv2.distanceTransform(1 - inside, *exact)
    if inside.all():
        return np.zeros(mask.shape, np.float32)
    inner = cv2.distanceTransform(inside, *exact)
    return np.where(mask, 1 - inner, outer).astype(np.float32)


@MODELS.register_module()
class LossSum(nn.ModuleList):
    """The sum of several losses, each booked under its own name; mmseg's heads walk through such a list.

    mmseg's own list of losses cannot hold `CrossEntropyDiceLoss`, which is a list itself.

    Args:
        losses: Their configs.
    """

    def __init__(self, losses: Sequence[dict[str, Any]]) -> None:
        if not losses:
            raise UserError("LossSum: no loss")
        parts: list[nn.Module] = []
        for config in losses:
            built = MODELS.build(config)
            parts.extend(built if isinstance(built, nn.ModuleList) else [built])
        super().__init__(parts)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        ignore_index: int | None = 255,
    ) -> Tensor:
        """The sum, a scalar; see `WeightedLoss.forward`."""
        values = [part(logits, labels, weight=weight, ignore_index=ignore_index) for part in self]
        return torch.stack(values).sum()


def _not_negative(loss: object, **values: float) -> None:
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise UserError(f"{type(loss).__name__}: {name}={value} is negative or not finite")


def _or_one(total: Tensor) -> Tensor:
    return total.where(total > 0, torch.ones_like(total))
