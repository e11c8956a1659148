"""A choice is a value or a group of keys: in files that inherit, in their saved copies, and in overrides."""

import io
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_seg.config import find_config, load_config, parse_options, unresolved_text
from spark_seg.errors import UserError

B0 = "segformer_b0_spark.py"
BASES = Path(__file__).resolve().parents[1] / "configs/_base_"


def child(path: Path, text: str, base: str | Path = B0) -> str:
    """A user's own config over another; returns its path."""
    path.write_text(f"_base_ = [{str(find_config(str(base)))!r}]\n{text}\n")
    return str(path)


def groups_in_comments() -> Iterator[tuple[str, str]]:
    """What the shipped parts' comments offer: a choice's name and the text of its group."""
    for path in sorted(BASES.glob("*.py")) + sorted(BASES.glob("*/*.py")):
        name = ""
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            if token.type == tokenize.NAME and token.start[1] == 0:
                name = token.string
            if token.type == tokenize.COMMENT and "dict(" in token.string:
                text = token.string[token.string.index("dict(") :]
                ends = [i for i, c in enumerate(text, 1) if c == ")"]
                yield (
                    name,
                    next(text[:i] for i in ends if text[:i].count("(") == text.count(")", 0, i)),
                )


COMMENTED = list(groups_in_comments())


def test_the_comments_are_found() -> None:
    assert ("compile", 'dict(mode="max-autotune")') in COMMENTED
    assert len({name for name, _ in COMMENTED}) >= 9


@pytest.mark.parametrize(
    ("name", "group"),
    [
        *COMMENTED,
        # docs/data.md, README.md, docs/recipe.md and what is like them
        ("mosaic", "dict(prob=0.3, spread=0.2)"),
        ("copy_paste", "dict(prob=0.3, most=0.1)"),
        ("camera_faults", 'dict(strength=2, prob=0.3, kinds=["noise", "jpeg"])'),
        ("coarse_dropout", "dict(prob=0.3, ignore=True)"),
        ("compile", 'dict(backend="eager")'),
        ("wandb", "dict(project=...)"),
        ("mlflow", "dict()"),
        ("class_weights", 'dict(type="median_frequency", cap=5)'),
        ("loss", 'dict(type="focal", gamma=3.0)'),
        ("tta", "dict(views=4)"),
    ],
)
def test_documented_group_in_a_file_and_on_the_command_line(
    tmp_path: Path, name: str, group: str
) -> None:
    """mmengine refuses a dict over False or None, which all of these are in the base."""
    group = group.replace("type=...", 'type="median_frequency"').replace("...", '"x"')
    wanted = eval(group, {"__builtins__": {}, "dict": dict})
    beside = "crop_size = 256" if name == "foreground_crop" else ""
    path = child(tmp_path / "mine.py", f"{name} = {group}\n{beside}")
    cfg = load_config(path)
    assert cfg[name] == wanted
    # the run's own copy of it
    saved = tmp_path / "config.py"
    saved.write_text(unresolved_text(cfg))
    assert load_config(str(saved)).to_dict() == cfg.to_dict()
    # the same words as an override
    options = parse_options([f"{name}={group}", *beside.replace(" ", "").split()])
    assert load_config(B0, options)[name] == wanted


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('compile = dict(backnd="eager")', "compile has no key 'backnd'; did you mean 'backend'"),
        ("tta = dict(veiws=4)", "'veiws'; did you mean 'views'"),
        ("mosaic = dict(prb=0.3)", "'prb'; did you mean 'prob'"),
        ("camera_faults = dict(strenth=2)", "'strenth'; did you mean 'strength'"),
        ('loss = dict(type="focal", gama=3)', "'gama'; did you mean 'gamma'"),
        ('optimizer = dict(type="SGD", momentm=0.9)', "'momentm'; did you mean 'momentum'"),
        # no choices between a value and a group
        ("lr = dict(x=1)", "lr must be a number above 0, not {'x': 1}"),
        ("image_size = dict(height=64)", "image_size must be a whole number"),
        ("subset = dict(frames=3)", "subset must be a value or a list"),
        ('custom_hooks = dict(type="ProgressHook")', "custom_hooks must be a list of groups"),
        ('val_pipeline = dict(type="LoadSparkImage")', "val_pipeline must be a list of groups"),
        ("train_dataloader = dict(batch_size=dict(a=1))", "change batch_size at the top level"),
    ],
)
def test_slip_in_a_group_of_a_file(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError) as e:
        load_config(child(tmp_path / "mine.py", text))
    assert says in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('wandb = dict(projct="x")', "wandb takes no key 'projct'; did you mean 'project'"),
        ('mlflow = dict(run_nme="x")', "mlflow takes no key 'run_nme'; did you mean 'run_name'"),
    ],
)
def test_slip_in_a_trackers_group_is_told_when_training_begins(
    tmp_path: Path, text: str, says: str
) -> None:
    from spark_seg.engine.combinations import require_possible

    cfg = load_config(child(tmp_path / "mine.py", text))
    with pytest.raises(UserError, match=says):
        require_possible(cfg, "single", 1, cuda=False)


def test_group_over_a_reference_would_lose_the_others_keys(tmp_path: Path) -> None:
    roi = "segformer_b0_spark_roi.py"
    with pytest.raises(UserError, match=r"would replace '\$roi' of the base: change roi at"):
        load_config(child(tmp_path / "a.py", "model = dict(roi=dict(coarse=0.4))", roi))
    meant = "model = dict(roi=dict(_delete_=True, coarse=0.4))"
    assert load_config(child(tmp_path / "b.py", meant, roi)).model.roi == {"coarse": 0.4}
    merged = load_config(child(tmp_path / "c.py", "roi = dict(coarse=0.4)", roi)).model.roi
    assert (merged.coarse, merged.crops) == (0.4, [0.5, 0.75, 1.0])


def test_chains_of_files(tmp_path: Path) -> None:
    """A group over a value, a group over that group, a value over it, and a group again."""
    one = child(tmp_path / "one.py", 'compile = dict(backend="eager")\nloss = "focal"')
    two = child(
        tmp_path / "two.py", 'compile = dict(mode="default")\nloss = dict(type="ohem")', one
    )
    three = child(tmp_path / "three.py", "compile = True\nloss = dict(threshold=0.6)", two)
    four = child(tmp_path / "four.py", "compile = dict(fullgraph=True)\nloss = None", three)
    cfgs = [load_config(path) for path in (one, two, three, four)]
    assert [cfg.compile for cfg in cfgs] == [
        {"backend": "eager"},
        {"backend": "eager", "mode": "default"},
        True,
        {"fullgraph": True},
    ]
    assert [cfg.loss for cfg in cfgs] == [
        "focal",
        {"type": "ohem"},
        {"type": "ohem", "threshold": 0.6},
        None,
    ]
    five = child(tmp_path / "five.py", 'compile = dict(_delete_=True, mode="default")', two)
    assert load_config(five).compile == {"mode": "default"}


def test_group_inside_the_parts(tmp_path: Path) -> None:
    """Nested values as the top level's, and groups merge there as ever."""
    text = "model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='x'), with_cp=True))"
    backbone = load_config(child(tmp_path / "mine.py", text)).model.backbone
    assert backbone.init_cfg == {"type": "Pretrained", "checkpoint": "x"}
    assert (backbone.with_cp, backbone.embed_dims) == (True, 32)


@pytest.mark.parametrize(
    ("text", "options", "key", "value"),
    [
        ("", ["compile.backend=eager"], "compile", {"backend": "eager"}),
        ("compile = True", ["compile.backend=eager"], "compile", {"backend": "eager"}),
        ("", ["wandb.project=x", "wandb.mode=offline"], "wandb", dict(project="x", mode="offline")),
        ("", ["custom_hooks.1.wandb.project=x"], "wandb", {"project": "x"}),
        ("", ["mosaic.prob=0.3"], "mosaic", {"prob": 0.3}),
        ("", ["loss.type=focal", "loss.gamma=3"], "loss", {"type": "focal", "gamma": 3}),
        ('loss = dict(type="focal")', ["loss.gamma=3"], "loss", {"type": "focal", "gamma": 3}),
        ('compile = dict(backend="eager")', ["compile=False"], "compile", False),
        (
            'compile = dict(backend="eager")',
            ["compile.mode=x"],
            "compile",
            dict(backend="eager", mode="x"),
        ),
        ("mosaic = dict(prob=0.3)", ["mosaic=0.4"], "mosaic", 0.4),
        ("wandb = dict(project='x')", ["wandb=None"], "wandb", None),
    ],
)
def test_overrides_of_a_choice(
    tmp_path: Path, text: str, options: list[str], key: str, value: Any
) -> None:
    cfg = load_config(child(tmp_path / "mine.py", text), parse_options(options))
    assert cfg[key] == value
    saved = tmp_path / "config.py"
    saved.write_text(unresolved_text(cfg))
    assert load_config(str(saved)).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    ("text", "option", "says"),
    [
        ("", "compile.bakend=eager", "compile has no key 'bakend'; did you mean 'backend'"),
        ("", "wandb.projct=x", "did you mean 'project'"),
        ("", "loss.gamma=3", 'set the whole of it, "loss=dict(type=..., gamma=...)"'),
        ('loss = dict(type="focal")', "loss.gama=3", "did you mean 'gamma'"),
        ("mosaic = 0.3", "mosaic.spread=0.2", 'set the whole of it, "mosaic=dict(spread=...)"'),
        ("", "subset.frames=3", "'subset' is a value (None), it has no key 'frames'"),
        ("", "compile.options.epilogue_fusion=True", "unknown config key 'compile.options'"),
        ('compile = dict(backend="eager")', "compile=fast", "compile is a group of keys"),
    ],
)
def test_override_of_a_choice_that_cannot_be(
    tmp_path: Path, text: str, option: str, says: str
) -> None:
    with pytest.raises(UserError) as e:
        load_config(child(tmp_path / "mine.py", text), parse_options([option]))
    assert says in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("dict(backend='eager')", {"backend": "eager"}),
        ("dict()", {}),
        (
            "dict(a=dict(b=[1, dict(c=(2, -3.5))]), d=None)",
            {"a": {"b": [1, {"c": (2, -3.5)}]}, "d": None},
        ),
        ("['ce', dict(type='boundary')]", ["ce", {"type": "boundary"}]),
        ("{'a': dict(b=true), \"c\": null}", {"a": {"b": True}, "c": None}),
        ("list(a=1)", "list(a=1)"),
        ("dictionary(3)", "dictionary(3)"),
    ],
)
def test_groups_as_configs_write_them(text: str, value: Any) -> None:
    assert parse_options([f"key={text}"]) == {"key": value}


@pytest.mark.parametrize(
    "text",
    ["dict(backend=eager)", "dict(1)", "dict(**x)", "dict(a=1", "dict(a=1, a=2)", "dict(a=f())"],
)
def test_group_that_cannot_be_read_is_not_taken_for_text(text: str) -> None:
    with pytest.raises(
        UserError, match=r"compile=dict\(.*cannot be read; text inside wants quotes"
    ):
        parse_options([f"compile={text}"])


def test_another_kind_of_choice_replaces_the_bases_group(tmp_path: Path) -> None:
    """Keys of one loss are none of another's; groups of one type, and the parts of a model, merge as ever."""
    mine = child(
        tmp_path / "mine.py",
        'loss = dict(type="focal", gamma=3.0)\nschedule = dict(type="poly", power=0.9)\n'
        'class_weights = [1.0, 2.0, 3.0]\nsampling = dict(by="small", factor=4.0)',
    )
    other = child(
        tmp_path / "other.py",
        'loss = dict(type="ohem", threshold=0.6)\nschedule = dict(type="step", milestones=[0.5])\n'
        'class_weights = dict(type="median_frequency", cap=5.0)\nsampling = dict(factor=2.0)',
        mine,
    )
    cfg = load_config(other)
    assert cfg.loss == {"type": "ohem", "threshold": 0.6}
    assert cfg.schedule == {"type": "step", "milestones": [0.5]}
    assert cfg.sampling == {"by": "small", "factor": 2.0}
    last = child(tmp_path / "last.py", 'class_weights = dict(type="effective_number")', other)
    assert load_config(last).class_weights == {"type": "effective_number"}
    same = child(tmp_path / "same.py", 'loss = dict(type="ohem", min_kept=0.1)', other)
    assert load_config(same).loss == {"type": "ohem", "threshold": 0.6, "min_kept": 0.1}


@pytest.mark.parametrize(
    "text",
    [
        "log_level = dict(a=1)",
        "default_scope = dict(a=1)",
        "strategy = dict(type=dict(a=1))",
        "val_evaluator = dict(type=dict(a=1))",
        "model = dict(backbone=dict(embed_dims=dict(a=1)))",
    ],
)
def test_group_where_none_belongs(tmp_path: Path, text: str) -> None:
    with pytest.raises(UserError, match=r"mine\.py cannot be loaded: TypeError") as e:
        load_config(child(tmp_path / "mine.py", text))
    assert "\n" not in str(e.value)


def test_group_for_a_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"work_dir=\{'a': 1\}: give text"):
        load_config(child(tmp_path / "mine.py", "work_dir = dict(a=1)"))


@pytest.mark.parametrize("text", ["tta={[1]:2}", "mosaic={{'x':1}}"])
def test_literals_that_python_refuses(text: str) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        parse_options([text])
