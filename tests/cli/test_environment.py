"""The environment variables that the launching scripts honour."""

import subprocess
import sys
from pathlib import Path

import pytest

from spark_seg.cli.environment import command_arguments, main
from spark_seg.errors import UserError, UserFileNotFoundError

ROOT = Path(__file__).resolve().parents[2]


def arguments(line: str, **environ: str) -> str:
    command, *args = line.split()
    return " ".join(command_arguments(command, args, environ))


def test_nothing_set() -> None:
    assert arguments("train mine.py --seed 3") == "mine.py --seed 3"
    assert arguments("train") == "segformer_b2_spark"


def test_variant_picks_the_config() -> None:
    assert arguments("train", SEGFORMER_VARIANT="b3") == "segformer_b3_spark"
    assert arguments("test", SEGFORMER_VARIANT=" B0 ") == "segformer_b0_spark"
    same = "configs/segformer_b3_spark.py"
    assert arguments(f"train {same}", SEGFORMER_VARIANT="b3") == same


def test_numbers_become_overrides_below_explicit_ones() -> None:
    from spark_seg.cli.common import Parser, add_common
    from spark_seg.config import parse_options

    full = arguments(
        "train mine.py --cfg-options epochs=3 --seed 1",
        IMAGE_SIZE="640",
        BATCH_SIZE="4",
        EPOCHS="50",
        LR="6e-5",
    )
    parser = Parser()
    add_common(parser)
    parser.add_argument("--seed")
    parsed = parser.parse_args(full.split())
    options = parse_options(parsed.cfg_options)
    assert options == {"image_size": 640, "batch_size": 4, "epochs": 3, "lr": 6e-5}
    assert parsed.config == "mine.py"


def test_evaluation_takes_size_and_batch_alone() -> None:
    env = {"IMAGE_SIZE": "640", "BATCH_SIZE": "4", "EPOCHS": "50", "LR": "6e-5"}
    told = "mine.py --cfg-options image_size=640 val_batch_size=4"
    assert arguments("test mine.py", **env) == told
    assert arguments("infer mine.py --out x", **env) == f"{told} --out x"
    assert arguments("infer mine.py") == "mine.py", "infer knows where its submission goes"


def test_model_path(tmp_path: Path) -> None:
    model = tmp_path / "best.safetensors"
    model.touch()
    env = {"MODEL_PATH": str(model)}
    assert arguments("test", **env) == f"segformer_b2_spark {model}"
    assert arguments("test mine.py --split train", **env) == f"mine.py {model} --split train"
    assert arguments(f"test mine.py {model}", **env) == f"mine.py {model}"
    assert arguments("train mine.py", **env) == "mine.py"
    with pytest.raises(UserError, match=r"MODEL_PATH.*other\.pth.*keep one"):
        arguments("infer mine.py other.pth", **env)
    with pytest.raises(UserFileNotFoundError, match="MODEL_PATH"):
        arguments("test", MODEL_PATH=str(tmp_path / "gone.pth"))


def test_a_requeued_training_resumes() -> None:
    assert arguments("train a.py", SLURM_RESTART_COUNT="1") == "a.py --resume"
    assert arguments("train a.py --resume x", SLURM_RESTART_COUNT="1") == "a.py --resume x"
    assert arguments("train a.py", SLURM_RESTART_COUNT="0") == "a.py"
    assert arguments("test a.py", SLURM_RESTART_COUNT="1") == "a.py"


def test_empty_is_not_set() -> None:
    env = dict.fromkeys(("SEGFORMER_VARIANT", "IMAGE_SIZE", "LR", "MODEL_PATH"), "")
    assert arguments("test a.py", **env) == "a.py"


def test_help_stays_help() -> None:
    assert arguments("train --help", SEGFORMER_VARIANT="b3") == "--help"


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"SEGFORMER_VARIANT": "b9"}, "SEGFORMER_VARIANT='b9' is none of b0, b1"),
        ({"IMAGE_SIZE": "640px"}, "IMAGE_SIZE must be a whole number from 1 on, not '640px'"),
        ({"IMAGE_SIZE": "6_40"}, "IMAGE_SIZE must be"),
        ({"BATCH_SIZE": "0"}, "BATCH_SIZE must be a whole number from 1 on, not '0'"),
        ({"EPOCHS": "1.5"}, "EPOCHS must be"),
        ({"LR": "fast"}, "LR must be a number above 0, not 'fast'"),
        ({"LR": "nan"}, "LR must be"),
        ({"LR": "-1"}, "LR must be"),
        ({"LR": "inf"}, "LR must be"),
    ],
)
def test_wrong_values_give_one_line(env: dict[str, str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        arguments("train", **env)
    assert str(caught.value).startswith(told)
    assert "\n" not in str(caught.value)


def test_variant_against_another_config() -> None:
    with pytest.raises(UserError, match="keep one"):
        arguments("train configs/segformer_b2_spark.py", SEGFORMER_VARIANT="b3")


def test_spaces_survive(capsys: pytest.CaptureFixture[str]) -> None:
    main(["train", "a b.py", "--cfg-options", "leave_out=XMM Newton"])
    assert capsys.readouterr().out.split("\0") == [
        "a b.py",
        "--cfg-options",
        "leave_out=XMM Newton",
        "",
    ]


def test_scripts_tell_mistakes_before_anything_starts(tmp_path: Path) -> None:
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "PYTHON": sys.executable}

    def script(*args: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *args], cwd=ROOT, env=env | more, capture_output=True, text=True, timeout=60
        )

    wrong = script("tools/dist_train.sh", "segformer_b0_spark", "2", LR="x")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: LR must be a number above 0, not 'x'\n"
    assert "usage: bash tools/dist_train.sh CONFIG N" in script("tools/dist_train.sh", "a").stderr
    assert "start it with sbatch" in script("tools/dist_train_slurm.sh", "a").stderr
    site = script("tools/dist_train.sh", "a", "2", SPARK_SITE_FILE="/gone.sh")
    assert (site.returncode, site.stderr) == (
        2,
        "error: SPARK_SITE_FILE=/gone.sh: there is no such file\n",
    )
    python = script("tools/dist_train.sh", "a", "2", PYTHON="/bin/false")
    assert "/bin/false has no torch" in python.stderr


def test_one_template_for_the_slurm_scripts() -> None:
    """The three differ in their command's name and comments; only a training asks for a warning before the limit."""
    texts = []
    for command in ("train", "test", "infer"):
        text = (ROOT / f"tools/dist_{command}_slurm.sh").read_text().replace(command, "COMMAND")
        assert ("--signal=" in text) == (command == "train")
        text = text.replace("#SBATCH --signal=B:USR1@120\n", "")
        texts.append(
            [line for line in text.splitlines() if not line.startswith("# ") or "SB" in line]
        )
    texts = [[line for line in text if not line.startswith("#   ")] for text in texts]
    assert texts[0] == texts[1] == texts[2]
