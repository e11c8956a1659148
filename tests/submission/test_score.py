"""Scoring a zip: equal to counting the masks directly, and clear about what does not fit."""

import io
import json
import subprocess
import sys
import zipfile

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.evaluation.bootstrap import intervals
from spark_seg.evaluation.challenge import ChallengeRule
from spark_seg.evaluation.counts import confusion
from spark_seg.evaluation.store import ImageCounts
from spark_seg.evaluation.table import metrics_of, table_lines
from spark_seg.labels import colorize
from spark_seg.submission.score import find_truth, main, score_zip
from spark_seg.submission.writer import SubmissionWriter

NAMES = [f"test_{index:05d}_img.jpg" for index in range(4)]
SIZE = (96, 128)


def mask(seed):
    rng = np.random.default_rng(seed)
    labels = np.zeros(SIZE, np.uint8)
    y, x = rng.integers(0, 40, 2)
    labels[y : y + 40, x : x + 40] = 1
    labels[y + 10 : y + 20, x + 20 : x + 70] = 2
    return labels


TRUTH = {name: mask(index) for index, name in enumerate(NAMES)}
FOUND = {name: np.roll(mask(index), index + 1, 0) for index, name in enumerate(NAMES)}


@pytest.fixture
def zipped(tmp_path):
    return write_zip(tmp_path / "out")


def write_zip(folder, dtype=bool, found=FOUND):
    writer = SubmissionWriter(folder, list(found), dtype=dtype)
    for name in writer.pending:
        writer.add(name, found[name])
    return writer.finish()


def write_truth(folder, form="colour", stem="{}_layer", extension=".png"):
    folder.mkdir()
    for name, labels in TRUTH.items():
        path = folder / (stem.format(name.removesuffix("_img.jpg")) + extension)
        image = colorize(labels)[..., ::-1] if form == "colour" else labels
        quality = [cv2.IMWRITE_JPEG_QUALITY, 100, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111]
        cv2.imwrite(str(path), image, quality if extension == ".jpg" else [])
    (folder / "._test_00000_layer.png").write_bytes(b"mac")
    (folder / "readme.txt").write_text("no mask")
    return folder


@pytest.mark.parametrize("dtype", [bool, np.uint8])
@pytest.mark.parametrize(
    ("form", "stem", "extension"),
    [
        ("colour", "{}_layer", ".jpg"),
        ("colour", "{}_layer", ".png"),
        ("index", "{}_layer", ".png"),
        ("index", "{}", ".png"),
    ],
)
def test_counts_are_those_of_the_masks(tmp_path, dtype, form, stem, extension):
    truth = write_truth(tmp_path / "truth", form, stem, extension)
    counts = score_zip(write_zip(tmp_path / "out", dtype), truth)
    assert counts.ids.tolist() == ["test_00000", "test_00001", "test_00002", "test_00003"]
    expected = np.stack([confusion(FOUND[name], TRUTH[name]) for name in NAMES])
    np.testing.assert_array_equal(counts.confusion, expected)


def test_names_of_the_labelled_splits(tmp_path):
    names = {"image_00000_img.jpg": mask(7)}
    (tmp_path / "truth").mkdir()
    cv2.imwrite(str(tmp_path / "truth" / "image_00000_layer.png"), mask(7))
    counts = score_zip(write_zip(tmp_path / "out", found=names), tmp_path / "truth")
    assert metrics_of(counts.confusion)["mIoU"] == 1.0


def test_command_prints_the_table_and_writes_the_numbers(tmp_path, zipped, capsys):
    truth = write_truth(tmp_path / "truth")
    target = tmp_path / "new" / "score.json"
    saved = tmp_path / "new" / "counts.npz"
    args = ["--truth", str(truth), "--json", str(target), "--counts", str(saved)]
    assert main([str(zipped), *args]) == 0
    counts = ImageCounts.load(saved)
    stack = np.stack([confusion(FOUND[name], TRUTH[name]) for name in NAMES])
    np.testing.assert_array_equal(counts.confusion, stack)
    lines = table_lines(counts, intervals=intervals(counts))
    assert capsys.readouterr().out.splitlines()[: len(lines)] == lines
    assert json.loads(target.read_text()) == pytest.approx(metrics_of(counts))
    assert main([str(zipped), "--truth", str(truth), "--resamples", "0"]) == 0
    assert "intervals of 95 %" not in capsys.readouterr().out


def test_the_rule_can_be_another(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    counts = score_zip(zipped, truth)
    default = metrics_of(counts)["spark/score"]
    for options, rule in (
        (["--thresholds", "0.3", "0.97"], ChallengeRule((0.3, 0.97))),
        (["--panel-share", "0.9"], ChallengeRule(panel_share=0.9)),
        (
            ["--thresholds", "0.9", "--panel-share", "0", "--empty-union", "1"],
            ChallengeRule((0.9,), 0, 1),
        ),
    ):
        out = tmp_path / "numbers.json"
        args = [str(zipped), "--truth", str(truth), "--resamples", "0", "--json", str(out)]
        assert main([*args, *options]) == 0
        found = json.loads(out.read_text())
        assert found["spark/score"] == metrics_of(counts, rule)["spark/score"] != default
        assert found["spark/panel_images"] == metrics_of(counts, rule)["spark/panel_images"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--threshold", "0.5"], "did you mean '--thresholds'"),
        (["--thresholds", "50"], "give IoU values from 0 to 1"),
        (["--empty-union", "2"], "give a value from 0 to 1"),
        (["--panel-share", "-1"], "give a share from 0 up"),
        (["--resamples", "-1"], "give a number from 0 up"),
    ],
)
def test_options_that_make_no_sense_are_told_before_the_zip_is_read(options, message):
    with pytest.raises(UserError, match=message):
        main(["none.zip", "--truth", "none", *options])


def test_missing_truth(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    (truth / "test_00002_layer.png").unlink()
    with pytest.raises(UserError, match=r"no mask in .*truth for test_00002 \(1 of 4 members\)$"):
        score_zip(zipped, truth)
    other = write_zip(
        tmp_path / "more", found=FOUND | {f"test_{n:05d}_img.jpg": mask(n) for n in range(6, 9)}
    )
    with pytest.raises(
        UserError, match=r"for test_00002, test_00006, test_00007 \.\.\. \(4 of 7 members\)$"
    ):
        score_zip(other, truth)


def test_missing_member(tmp_path):
    truth = write_truth(tmp_path / "truth")
    found = {name: FOUND[name] for name in NAMES[1:]}
    with pytest.raises(UserError, match=r"1 of 4 members are missing: 'test_00000_layer\.npz'"):
        score_zip(write_zip(tmp_path / "out", found=found), truth)


def test_another_size(tmp_path):
    truth = write_truth(tmp_path / "truth")
    found = FOUND | {NAMES[1]: mask(1)[:, 1:]}
    with pytest.raises(UserError, match=r"test_00001_layer\.npz: the shape is \[96, 127, 3\]"):
        score_zip(write_zip(tmp_path / "out", found=found), truth)


def test_folder_without_masks_or_not_there(tmp_path, zipped):
    with pytest.raises(UserFileNotFoundError, match="no such folder"):
        score_zip(zipped, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserFileNotFoundError, match="no mask in it"):
        score_zip(zipped, tmp_path / "empty")
    with pytest.raises(UserFileNotFoundError, match="no such zip"):
        score_zip(tmp_path / "none.zip", write_truth(tmp_path / "truth"))


def test_two_masks_of_one_name(tmp_path):
    truth = write_truth(tmp_path / "truth")
    (truth / "more").mkdir()
    cv2.imwrite(str(truth / "more" / "test_00001.png"), TRUTH[NAMES[1]])
    with pytest.raises(UserError, match=r"both the truth of test_00001_layer\.npz"):
        find_truth(truth)


def test_a_truth_that_is_no_mask(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    photo = np.random.default_rng(0).integers(0, 255, (*SIZE, 3)).astype(np.uint8)
    cv2.imwrite(str(truth / "test_00001_layer.png"), photo)
    with pytest.raises(UserError, match=r"test_00001_layer\.png"):
        score_zip(zipped, truth)


def test_a_zip_with_a_folder_inside(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    nested = tmp_path / "nested.zip"
    with zipfile.ZipFile(zipped) as source, zipfile.ZipFile(nested, "w") as target:
        for name in source.namelist():
            target.writestr(f"results/{name}", source.read(name))
    with pytest.raises(UserError, match="4 members lie in a folder") as error:
        score_zip(nested, truth)
    assert "\n" not in str(error.value)


def test_an_extra_member(tmp_path):
    truth = write_truth(tmp_path / "truth")
    found = FOUND | {"test_00009_img.jpg": mask(9)}
    with pytest.raises(UserError, match=r"no mask in .*truth for test_00009 \(1 of 5 members\)$"):
        score_zip(write_zip(tmp_path / "out", found=found), truth)


def test_a_file_that_is_no_member(tmp_path, zipped):
    members = entries(zipped) | {"readme.txt": b"hello"}
    with pytest.raises(UserError, match=r"1 members belong to no image: 'readme\.txt'$"):
        score_zip(rewrite(tmp_path / "bad.zip", members), write_truth(tmp_path / "truth"))


def entries(zipped):
    with zipfile.ZipFile(zipped) as source:
        return {name: source.read(name) for name in source.namelist()}


def rewrite(path, members):
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    return path


@pytest.mark.parametrize("name", ["/tmp/{}", "../{}", "a/../../{}", "C:/{}", "..\\{}"])
def test_names_that_lead_out(tmp_path, zipped, name):
    truth = write_truth(tmp_path / "truth")
    members = {name.format(key): data for key, data in entries(zipped).items()}
    with pytest.raises(UserError, match="4 members have absolute or outside paths") as error:
        score_zip(rewrite(tmp_path / "bad.zip", members), truth)
    assert "\n" not in str(error.value)


class Bomb:
    """Unpickling it would leave a trace."""

    fuse = "unpickled"

    def __reduce__(self):
        import pathlib

        return pathlib.Path.touch, (pathlib.Path(Bomb.fuse),)


def npz(array):
    file = io.BytesIO()
    np.savez_compressed(file, data=array)
    return file.getvalue()


def test_an_object_array_is_not_unpickled(tmp_path, zipped, monkeypatch):
    truth = write_truth(tmp_path / "truth")
    monkeypatch.setattr(Bomb, "fuse", str(tmp_path / "unpickled"))
    members = entries(zipped)
    members["test_00002_layer.npz"] = npz(np.array([Bomb()], object))
    with pytest.raises(
        UserError, match=r"bad\.zip: test_00002_layer\.npz: an object array"
    ) as error:
        score_zip(rewrite(tmp_path / "bad.zip", members), truth)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "unpickled").exists()


def test_a_bomb_is_not_unpacked(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    members = entries(zipped)
    members["test_00001_layer.npz"] = npz(np.zeros((8192, 4096, 3), bool))
    with pytest.raises(UserError, match=r"test_00001_layer\.npz: declares 100663424 bytes"):
        score_zip(rewrite(tmp_path / "bad.zip", members), truth)


def test_mistakes_on_the_command_line_are_one_line_and_a_code(tmp_path, zipped):
    truth = write_truth(tmp_path / "truth")
    (tmp_path / "text.zip").write_text("no zip")
    code = "import sys; from spark_seg.submission.score import main; assert not {'torch', 'mmseg'} & {*sys.modules}"
    subprocess.run([sys.executable, "-c", code], check=True)
    for args in (
        [str(tmp_path / "text.zip"), "--truth", str(truth)],
        [str(zipped), "--truth", str(tmp_path / "none")],
        [str(zipped), "--truth", str(truth), "--resamples", "-1"],
    ):
        command = [sys.executable, "-m", "spark_seg.submission.score", *args]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1
