"""SegFormer's weights under four sets of names, and the way from each to mmseg's and back.

| family        | where it is found                       | encoder              | decoder's projections |
|---------------|-----------------------------------------|----------------------|-----------------------|
| `mmseg`       | mmsegmentation, all that spark_seg writes | `backbone.layers.0` | `decode_head.convs.0` |
| `nvlabs`      | the paper's repository (NVlabs/SegFormer) | `backbone.block1`   | `decode_head.linear_c1` |
| `huggingface` | files of the hub                        | `segformer.encoder`  | `decode_head.linear_c.0` |
| `transformers`| modules of transformers 5, in memory    | `segformer.stages.0` | `...linear_projections.0` |

What differs beside names: mmseg keeps query, key and value in one matrix (NVlabs key and value), has 1x1 convolutions
where others have linear layers, and concatenates the projected maps from fine to coarse where all others go from
coarse to fine, so that the fusion's input channels are in another order.

Layer norms' eps is no weight, but part of the function: see `NORMS`.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spark_seg.engine.checkpoints import head_kind
from spark_seg.errors import UserError

FAMILIES = ("mmseg", "nvlabs", "huggingface", "transformers")

NORMS: dict[str, tuple[float, float]] = {
    # mmsegmentation's `norm_cfg=dict(type='LN', eps=1e-6)` goes to every norm
    "mmseg": (1e-6, 1e-6),
    # `mit_b0` to `mit_b5` hand `partial(nn.LayerNorm, eps=1e-6)` to blocks and stages alone: `OverlapPatchEmbed` and
    # `Attention` (the norm of the reduced map) build their own `nn.LayerNorm(dim)` with torch's default
    "nvlabs": (1e-6, 1e-5),
    # `nn.LayerNorm(hidden_size)` throughout; the config's `layer_norm_eps` is read by nothing
    "huggingface": (1e-5, 1e-5),
}
"""Layer norms' eps by the weights' source: of blocks and stages; of patch embeddings and reduced maps."""


@dataclass(frozen=True)
class _Rule:
    """One module under each family's name. `{i}` is the stage from 0, `{n}` the stage from 1, `{j}` the block."""

    mmseg: str
    nvlabs: str
    huggingface: str
    transformers: str
    form: str = "plain"  # 'linear': 1x1 convolution in mmseg; 'fuse': channels from coarse to fine

    def name(self, family: str) -> str:
        return str(getattr(self, family))


_BLOCK = ("layers.{i}.1.{j}.", "block{n}.{j}.", "encoder.block.{i}.{j}.", "stages.{i}.blocks.{j}.")


def _block(*names: str, form: str = "plain") -> _Rule:
    a, b, c, d = (prefix + name for prefix, name in zip(_BLOCK, names, strict=True))
    return _Rule(a, b, c, d, form)


_SR = "attention.sequence_reduction."
_ENCODER = (
    _Rule(
        "layers.{i}.0.projection",
        "patch_embed{n}.proj",
        "encoder.patch_embeddings.{i}.proj",
        "stages.{i}.patch_embeddings.proj",
    ),
    _Rule(
        "layers.{i}.0.norm",
        "patch_embed{n}.norm",
        "encoder.patch_embeddings.{i}.layer_norm",
        "stages.{i}.patch_embeddings.layer_norm",
    ),
    _Rule("layers.{i}.2", "norm{n}", "encoder.layer_norm.{i}", "stages.{i}.layer_norm"),
    _block("norm1", "norm1", "layer_norm_1", "layernorm_before"),
    _block("norm2", "norm2", "layer_norm_2", "layernorm_after"),
    _block("attn.attn.out_proj", "attn.proj", "attention.output.dense", "attention.o_proj"),
    _block("attn.sr", "attn.sr", "attention.self.sr", _SR + "sequence_reduction"),
    _block("attn.norm", "attn.norm", "attention.self.layer_norm", _SR + "layer_norm"),
    _block("ffn.layers.0", "mlp.fc1", "mlp.dense1", "mlp.fc1", form="linear"),
    _block("ffn.layers.1", *["mlp.dwconv.dwconv"] * 3),
    _block("ffn.layers.4", "mlp.fc2", "mlp.dense2", "mlp.fc2", form="linear"),
)
_HEAD = (
    _Rule("convs.{i}.conv", "linear_c{n}.proj", "linear_c.{i}.proj", "linear_projections.{i}.proj", "linear"),
    _Rule("fusion_conv.conv", "linear_fuse.conv", "linear_fuse", "linear_fuse", "fuse"),
    _Rule("fusion_conv.bn", "linear_fuse.bn", "batch_norm", "batch_norm"),
    _Rule("conv_seg", "linear_pred", "classifier", "classifier"),
)  # fmt: skip
_JOINED = "layers.{i}.1.{j}.attn.attn.in_proj_{leaf}"
_PARTS = {
    "nvlabs": ("block{n}.{j}.attn.q.{leaf}", "block{n}.{j}.attn.kv.{leaf}"),
    "huggingface": tuple(
        f"encoder.block.{{i}}.{{j}}.attention.self.{part}.{{leaf}}"
        for part in ("query", "key", "value")
    ),
    "transformers": tuple(
        f"stages.{{i}}.blocks.{{j}}.attention.{part}_proj.{{leaf}}" for part in "qkv"
    ),
}
_ENCODER_PREFIX = {
    "mmseg": "backbone.",
    "nvlabs": "backbone.",
    "huggingface": "segformer.",
    "transformers": "segformer.",
}
_HEAD_PREFIX = "decode_head."
# What a family's files hold beside the network: the ImageNet classifier, and mmseg's base class' unused classifier.
_UNUSED = {
    "mmseg": (),
    "nvlabs": ("head.", "decode_head.conv_seg."),
    "huggingface": ("classifier.",),
    "transformers": ("classifier.",),
}
_MARKS = {
    "mmseg": "layers.0.0.projection.weight",
    "nvlabs": "patch_embed1.proj.weight",
    "huggingface": "encoder.patch_embeddings.0.proj.weight",
    "transformers": "stages.0.patch_embeddings.proj.weight",
}


@dataclass(frozen=True)
class Converted:
    """A state dict in mmseg's names.

    Attributes:
        state: Every tensor that has a place in the network, `backbone....` and `decode_head....`.
        family: Whose names it had.
        unused: Its keys that belong to no part of the network, and why is known: classifiers of another task.
    """

    state: dict[str, Tensor]
    family: str
    unused: tuple[str, ...]


def family_of(keys: Iterable[str]) -> str | None:
    """Whose names these are, one of `FAMILIES`, or None for what is no SegFormer."""
    keys = set(keys)
    for family, mark in _MARKS.items():
        if mark in keys or _ENCODER_PREFIX[family] + mark in keys:
            return family
    return None


def to_mmseg(state: Mapping[str, Tensor], source: object = "the weights") -> Converted:
    """Gives weights of any family mmseg's names, with every key accounted for.

    Args:
        state: Tensors by name; a whole segmentor, or an encoder alone with or without its prefix.
        source: Where it comes from, for messages.

    Raises:
        UserError: It is no SegFormer, a key has no place, or parts of an attention are missing.
    """
    family = family_of(state)
    if family is None:
        raise UserError(
            f"{source} holds no SegFormer (first keys: {_first(state)}): known are the names of mmsegmentation, "
            "NVlabs/SegFormer and Hugging Face"
        )
    prefix = _ENCODER_PREFIX[family]
    bare = _MARKS[family] in state
    unused = tuple(key for key in state if key.startswith(_UNUSED[family]))
    found: dict[str, Tensor] = {}
    joined: dict[str, dict[int, Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        if key in unused:
            continue
        if family == "mmseg":
            # Whatever is neither is left in, and the comparison with the model tells it.
            found[prefix + key if bare and not key.startswith(_HEAD_PREFIX) else key] = tensor
            continue
        if not key.startswith(_HEAD_PREFIX) and not key.startswith(prefix) and not bare:
            unknown.append(key)
            continue
        inner = key.removeprefix(_HEAD_PREFIX if key.startswith(_HEAD_PREFIX) else prefix)
        part = _part(inner, family) if not key.startswith(_HEAD_PREFIX) else None
        if part is not None:
            name, place = part
            joined.setdefault(prefix_of_mmseg(name), {})[place] = tensor
            continue
        renamed = _renamed(key, inner, family)
        if renamed is None:
            unknown.append(key)
        else:
            found[renamed[0]] = _form_to_mmseg(tensor, renamed[0], renamed[1])
    if unknown:
        raise UserError(
            f"{source} has {len(unknown)} keys that no part of a SegFormer takes (first {_first(unknown)})"
        )
    for name, parts in joined.items():
        lacking = len(_PARTS[family]) - len(parts)
        if lacking:
            raise UserError(f"{source} lacks {lacking} of the matrices that make up {name}")
        found[name] = torch.cat([parts[k] for k in sorted(parts)])
    return Converted(found, family, unused)


def prefix_of_mmseg(name: str) -> str:
    """An encoder's key as the whole segmentor has it."""
    return _ENCODER_PREFIX["mmseg"] + name


def from_mmseg(state: Mapping[str, Tensor], family: str) -> dict[str, Tensor]:
    """The reverse of `to_mmseg`: a whole segmentor, or a backbone (`backbone....` alone), under another family's names.

    Args:
        state: In mmseg's names.
        family: One of `FAMILIES`.

    Raises:
        UserError: The decoder has mmseg's extra norms, for which the family has no place; or a key is unknown.
    """
    if family == "mmseg":
        return dict(state)
    if head_kind(state) == "SegformerHead":
        raise UserError(
            f"the decoder has a norm and a ReLU after each projection (mmsegmentation's SegformerHead), which a "
            f"{family} SegFormer has no place for: write the encoder alone (--backbone-only), or train with "
            "head='paper'"
        )
    out: dict[str, Tensor] = {}
    for key, tensor in state.items():
        split = _split(key, tensor, family)
        if split:
            out.update(split)
            continue
        section, rules, to = _section(key, "mmseg", family)
        for rule in rules:
            match = _pattern(rule.mmseg).fullmatch(key.removeprefix(section))
            if match:
                name = _fill(rule.name(family), match)
                out[f"{to}{name}.{match['leaf']}"] = _form_from_mmseg(tensor, key, rule.form)
                break
        else:
            raise UserError(f"{key} has no place in a {family} SegFormer")
    return out


def norms_of(model: nn.Module) -> str | None:
    """Whose eps a segmentor's layer norms have, a key of `NORMS`; None for any other."""
    pairs = list(_layer_norms(model))
    for family, wanted in NORMS.items():
        if pairs and all(norm.eps == wanted[kind] for norm, kind in pairs):
            return family
    return None


def set_norms(model: nn.Module, family: str) -> None:
    """Gives a segmentor's layer norms the eps with which weights of a family compute; see `NORMS`."""
    for norm, kind in _layer_norms(model):
        norm.eps = NORMS[family][kind]


def _layer_norms(model: nn.Module) -> Iterator[tuple[nn.LayerNorm, int]]:
    """The backbone's layer norms with their place in `NORMS`' pairs."""
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm) and name.startswith("backbone."):
            # `layers.<i>.0.norm` is a patch embedding's, `...attn.norm` the reduced map's
            yield module, int(bool(re.search(r"layers\.\d+\.0\.norm$|\.attn\.norm$", name)))


def _section(key: str, family: str, to: str) -> tuple[str, tuple[_Rule, ...], str]:
    """The prefix of a key, the rules for what follows, and the prefix it shall have."""
    if key.startswith(_HEAD_PREFIX):
        return _HEAD_PREFIX, _HEAD, _HEAD_PREFIX
    return _ENCODER_PREFIX[family], _ENCODER, _ENCODER_PREFIX[to]


def _renamed(key: str, inner: str, family: str) -> tuple[str, str] | None:
    head = key.startswith(_HEAD_PREFIX)
    for rule in _HEAD if head else _ENCODER:
        match = _pattern(rule.name(family)).fullmatch(inner)
        if match:
            prefix = _HEAD_PREFIX if head else _ENCODER_PREFIX["mmseg"]
            return f"{prefix}{_fill(rule.mmseg, match)}.{match['leaf']}", rule.form
    return None


def _part(inner: str, family: str) -> tuple[str, int] | None:
    """The joined matrix to which a key belongs, and its place in it."""
    for place, template in enumerate(_PARTS[family]):
        match = _pattern(template.removesuffix(".{leaf}")).fullmatch(inner)
        if match:
            return _fill(_JOINED, match), place
    return None


def _split(key: str, tensor: Tensor, family: str) -> dict[str, Tensor]:
    """mmseg's joined matrix in a family's parts; empty for any other key."""
    inner = key.removeprefix(_ENCODER_PREFIX["mmseg"])
    pattern = re.escape(_JOINED).replace(r"\{i\}", r"(?P<i>\d+)").replace(r"\{j\}", r"(?P<j>\d+)")
    match = re.fullmatch(pattern.replace(r"\{leaf\}", "(?P<leaf>weight|bias)"), inner)
    if not match:
        return {}
    names = [_ENCODER_PREFIX[family] + _fill(template, match) for template in _PARTS[family]]
    channels = tensor.shape[0] // 3
    sizes = [channels, 2 * channels] if len(names) == 2 else [channels] * 3
    return {
        name: part.clone() for name, part in zip(names, tensor.split(sizes), strict=True)
    }  # clones: safetensors takes no views of one memory


_PATTERNS: dict[str, re.Pattern[str]] = {}


def _pattern(template: str) -> re.Pattern[str]:
    """A template as an expression, followed by a tensor's own name as the group `leaf`."""
    if template not in _PATTERNS:
        text = re.escape(template)
        for name in "inj":
            text = text.replace(rf"\{{{name}\}}", rf"(?P<{name}>\d+)")
        leaf = r"\.(?P<leaf>weight|bias|running_mean|running_var|num_batches_tracked)"
        _PATTERNS[template] = re.compile(text + leaf)
    return _PATTERNS[template]


def _fill(template: str, match: re.Match[str]) -> str:
    """A template with the numbers (and the tensor's name) of a match."""
    found = match.groupdict()
    stage = int(found["i"]) if found.get("i") else int(found["n"]) - 1 if found.get("n") else 0
    return template.format(i=stage, n=stage + 1, j=found.get("j"), leaf=found.get("leaf"))


def _form_to_mmseg(tensor: Tensor, name: str, form: str) -> Tensor:
    if form == "linear" and name.endswith(".weight"):
        return tensor[:, :, None, None] if tensor.dim() == 2 else tensor
    return _turned(tensor) if form == "fuse" and name.endswith(".weight") else tensor


def _form_from_mmseg(tensor: Tensor, name: str, form: str) -> Tensor:
    if form == "linear" and name.endswith(".weight"):
        return tensor.flatten(1)
    return _turned(tensor) if form == "fuse" and name.endswith(".weight") else tensor


def _turned(weight: Tensor) -> Tensor:
    """The fusion's weights with the four scales' input channels in the opposite order; its own reverse."""
    return torch.cat(list(reversed(weight.chunk(4, dim=1))), dim=1)


def _first(keys: Iterable[str], count: int = 3) -> str:
    keys = list(keys)
    return ", ".join(keys[:count]) + (", ..." if len(keys) > count else "")
