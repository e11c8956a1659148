"""Another network for the first of two passes: that of a run that has been trained before.

Two passes by one set of weights ask it to see whole frames and crops alike. With a finder they are two networks, each
trained on what it sees; the finder may be a smaller variant, so that a finer first pass costs little.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spark_seg.errors import UserError


class Finder:
    """The network of a finished run, as it is predicted with; its weights stay as they are.

    It is no `nn.Module`, so that the segmentor that holds it neither trains nor saves it.

    Args:
        folder: The run's folder: `config.py` and `checkpoints/best.safetensors` as `tools/train.py` leaves them.
        segmentor: The one that it finds for.

    Attributes:
        network: mmseg's segmentor; moved to the first input's device, then frozen for its precision.

    Raises:
        UserError: There is no such run, its weights do not fit its config, or it tells other classes apart or takes
            channels in another order than the segmentor.
    """

    def __init__(self, folder: str | Path, segmentor: Any) -> None:
        from spark_seg.engine.runner import untouched_random_state
        from spark_seg.models.fast_segformer import accelerate

        cfg, weights = _read(folder)
        with untouched_random_state():  # a training with a finder begins as one without
            self.network = _built(cfg, weights, folder)
        if cfg.get("accelerate", True):
            accelerate(self.network)
        self._theirs = segmentor.data_preprocessor  # its buffers follow the device in place
        _check(self.network, segmentor, folder)
        self._ready = False

    def __call__(self, inputs: Tensor) -> Tensor:
        """Pictures to logits, in the precision of the autocast around it.

        Args:
            inputs: [B, 3, h, w], normalised by the segmentor's preprocessor.

        Returns:
            Logits [B, C, h', w'] on the inputs' device.
        """
        if not self._ready:
            self._prepare(inputs.device)
        mine, theirs = self.network.data_preprocessor, self._theirs
        if hasattr(mine, "mean") and not (
            torch.equal(mine.mean, theirs.mean) and torch.equal(mine.std, theirs.std)
        ):
            inputs = inputs * (theirs.std / mine.std) + (theirs.mean - mine.mean) / mine.std
        return self.network(inputs, mode="tensor")

    def _prepare(self, device: torch.device) -> None:
        from spark_seg.models.fast_inference import freeze_weights

        self.network.to(device)
        autocast = torch.is_autocast_enabled(device.type)
        freeze_weights(
            self.network, torch.get_autocast_dtype(device.type) if autocast else torch.float32
        )
        self._ready = True


def finder_identity(folder: str | Path) -> str:
    """Digest of all that a `Finder` of this folder computes by: weights, network, normalisation."""
    from spark_seg.submission.run import weights_digest

    cfg, weights = _read(folder)
    network = json.dumps([cfg.model, cfg.get("accelerate", True)], default=str, sort_keys=True)
    return hashlib.sha256((weights_digest(weights) + network).encode()).hexdigest()


def _read(folder: str | Path) -> tuple[Any, dict[str, Tensor]]:
    from spark_seg.config import load_config
    from spark_seg.engine.checkpoints import load_state_dict
    from spark_seg.engine.folder import BEST_FILE

    if not isinstance(folder, str | Path):
        raise UserError(f"finder={folder!r}: give the folder of a finished run")
    folder = Path(folder).expanduser()
    config, best = Path(folder) / "config.py", Path(folder) / "checkpoints" / BEST_FILE
    missing = [path for path in (config, best) if not path.is_file()]
    if missing:
        raise UserError(
            f"finder: {missing[0]} is not there; give the folder of a run that tools/train.py has finished"
        )
    return load_config(str(config)), load_state_dict(best)


def _built(cfg: Any, weights: dict[str, Tensor], folder: str | Path) -> Any:
    from mmseg.registry import MODELS

    from spark_seg.engine.checkpoints import apply_state_dict

    given = dict(cfg.model)
    given.pop("finder", None)  # one finder finds
    model: Any = MODELS.build({**given, "_scope_": "mmseg"})
    apply_state_dict(model, weights, Path(folder))
    return model.eval()


def _check(network: Any, segmentor: Any, folder: str | Path) -> None:
    for what, mine, theirs in (
        ("classes", network.decode_head.num_classes, segmentor.decode_head.num_classes),
        (
            "a preprocessor of channels in this order: bgr_to_rgb",
            network.data_preprocessor.channel_conversion,
            segmentor.data_preprocessor.channel_conversion,
        ),
        (
            "a preprocessor with mean and std",
            hasattr(network.data_preprocessor, "mean"),
            hasattr(segmentor.data_preprocessor, "mean"),
        ),
    ):
        if mine != theirs:
            raise UserError(f"finder: {folder} has {what} {mine}, the segmentor {theirs}")
