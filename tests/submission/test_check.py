"""The check finds every fault a server would reject, and passes what is right."""

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.submission.check import check_zip, image_size, main
from spark_seg.submission.members import member_name, pack

ROOT = Path(__file__).resolve().parents[2]
SIZES = {
    "test_00000_img.jpg": (20, 30),
    "test_00001_img.jpg": (16, 16),
    "test_00002_img.png": (9, 7),
}


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name, size in SIZES.items():
        cv2.imwrite(str(folder / name), np.full((*size, 3), 90, np.uint8))
    (folder / "._test_00000_img.jpg").write_bytes(b"mac")
    (folder / "notes.txt").write_text("no image")
    return folder


def answer(size, dtype=bool):
    array = np.zeros((*size, 3), dtype)
    on = True if dtype is bool else 255
    array[1:4, 1:5, 0] = on
    array[5:6, 1:5, 2] = on
    return array


def members(dtype=bool):
    return {member_name(name): pack(answer(size, dtype)) for name, size in SIZES.items()}


def write(path, entries):
    entries = entries.items() if isinstance(entries, dict) else entries
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return path


def problems(tmp_path, images, entries):
    report = check_zip(write(tmp_path / "s.zip", entries), images)
    assert report.ok == (not report.problems)
    assert not any("\n" in problem for problem in report.problems)
    return report.problems


@pytest.mark.parametrize("dtype", [bool, np.uint8])
def test_a_right_zip_passes(tmp_path, images, dtype):
    report = check_zip(write(tmp_path / "s.zip", members(dtype)), images)
    assert report.problems == []
    assert report.ok
    assert (report.images, report.good, report.empty) == (3, 3, 0)
    assert report.dtypes == {np.dtype(dtype).name: 3}
    assert report.sizes == {(20, 30): 1, (16, 16): 1, (9, 7): 1}
    assert "fit to submit: 3 images" in report.summary()
    assert "NOT" not in report.summary()
    report.raise_if_bad()


def test_savez_of_a_stranger_passes_too(tmp_path, images):
    entries = {}
    for name, size in SIZES.items():
        buffer = io.BytesIO()
        np.savez(buffer, data=answer(size, np.uint8))
        entries[member_name(name)] = buffer.getvalue()
    assert problems(tmp_path, images, entries) == []


def test_an_answer_without_any_craft_is_legal_and_counted(tmp_path, images):
    entries = members() | {"test_00001_layer.npz": pack(np.zeros((16, 16, 3), bool))}
    report = check_zip(write(tmp_path / "s.zip", entries), images)
    assert report.ok
    assert report.empty == 1
    assert "1 without any spacecraft" in report.summary()


@pytest.mark.parametrize("gone", [1, 3])
def test_missing_members(tmp_path, images, gone):
    kept = dict(list(members().items())[gone:])
    (problem,) = problems(tmp_path, images, kept)
    assert problem.startswith(f"{gone} of 3 members are missing: 'test_00000_layer.npz'")


def test_extra_member(tmp_path, images):
    (problem,) = problems(tmp_path, images, members() | {"test_00009_layer.npz": b""})
    assert problem == "1 members belong to no image: 'test_00009_layer.npz'"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_twice(tmp_path, images):
    entries = list(members().items())
    (problem,) = problems(tmp_path, images, [*entries, entries[0]])
    assert problem == "1 members are there twice: 'test_00000_layer.npz'"


def test_a_zipped_folder(tmp_path, images):
    entries = {f"results/{name}": data for name, data in members().items()}
    found = problems(tmp_path, images, {"results/": b"", **entries})
    assert "4 members lie in a folder; zip the files themselves" in found[0]
    assert found[1].startswith("3 of 3 members are missing")


@pytest.mark.parametrize(
    "name",
    [
        "/test_00000_layer.npz",
        "../test_00000_layer.npz",
        "a/../../test_00000_layer.npz",
        "..\\test_00000_layer.npz",
        "C:/test_00000_layer.npz",
    ],
)
def test_paths_that_leave_the_folder(tmp_path, images, name):
    (problem,) = problems(tmp_path, images, members() | {name: b"x"})
    assert problem.startswith("1 members have absolute or outside paths")


def test_a_name_with_a_hidden_end(tmp_path, images):
    path = write(tmp_path / "s.zip", members())
    data = path.read_bytes().replace(b"test_00000_layer.npz", b"test_00000_layer.np\0")
    path.write_bytes(data)
    found = check_zip(path, images).problems
    assert found[0].startswith("1 members have absolute or outside paths")
    assert found[1].startswith("1 of 3 members are missing")


def both(size):
    array = answer(size)
    array[1, 1, 2] = True
    return array


def green(size):
    array = answer(size)
    array[0, 0, 1] = True
    return array


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (both((20, 30)), "body and panel"),
        (green((20, 30)), "green"),
        (answer((30, 20)), r"the shape is [30, 20, 3], the image needs [20, 30, 3]"),
        (answer((20, 30), np.uint8) // 255, "0 or 255"),
        (answer((20, 30), np.uint8) - 1, "0 or 255"),
        (answer((20, 30)).astype(np.float64), "float64"),
        (answer((20, 30))[..., 0], "the shape is [20, 30]"),
        (answer((20, 30)).astype(object), "object array"),
    ],
)
def test_a_member_with_a_wrong_array(tmp_path, images, array, message):
    buffer = io.BytesIO()
    np.savez(buffer, data=array)
    report = check_zip(
        write(tmp_path / "s.zip", members() | {"test_00000_layer.npz": buffer.getvalue()}), images
    )
    (problem,) = report.problems
    assert message in problem
    assert "test_00000_layer.npz" in problem
    assert report.bad == ["test_00000_layer.npz"]
    assert report.good == 2


def test_mixed_dtypes(tmp_path, images):
    entries = members() | {"test_00001_layer.npz": pack(answer((16, 16), np.uint8))}
    (problem,) = problems(tmp_path, images, entries)
    assert problem == (
        "the members' dtypes are mixed: 2 bool (first test_00000_layer.npz), "
        "1 uint8 (first test_00001_layer.npz)"
    )


def test_a_bomb_is_not_unpacked(tmp_path, images, monkeypatch):
    path = tmp_path / "s.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members().items():
            archive.writestr(name, bytes(50_000_000) if "00001" in name else data)
    read = zipfile.ZipFile.read

    def watch(self, info, *rest):
        assert info.file_size < 1_000_000
        return read(self, info, *rest)

    monkeypatch.setattr(zipfile.ZipFile, "read", watch)
    (problem,) = check_zip(path, images).problems
    assert problem.startswith("test_00001_layer.npz: declares 50000000 bytes")


def test_damaged_zips(tmp_path, images):
    path = write(tmp_path / "s.zip", members())
    whole = path.read_bytes()
    for damage in (b"", b"text", whole[: len(whole) // 2], whole[:-10]):
        path.write_bytes(damage)
        (problem,) = check_zip(path, images).problems
        assert "not a whole zip file" in problem
    at = whole.index(b"data.npy") + 60
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    (problem,) = check_zip(path, images).problems
    assert problem.startswith("test_00000_layer.npz: damaged")


def test_an_encrypted_member(tmp_path, images):
    path = write(tmp_path / "s.zip", members())
    data = bytearray(path.read_bytes())
    data[data.rindex(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    (problem,) = check_zip(path, images).problems
    assert "encrypted" in problem


def test_a_list_of_names_is_enough_and_files_in_it_are_measured(tmp_path, images):
    path = write(tmp_path / "s.zip", members())
    assert check_zip(path, list(SIZES)).ok
    assert check_zip(path, [str(images / name) for name in SIZES]).ok
    cv2.imwrite(str(images / "test_00001_img.jpg"), np.zeros((16, 17, 3), np.uint8))
    assert check_zip(path, list(SIZES)).ok
    assert "needs [16, 17, 3]" in check_zip(path, [str(images / n) for n in SIZES]).problems[0]


def test_what_cannot_be_checked_is_an_error(tmp_path, images):
    with pytest.raises(UserFileNotFoundError, match="no such zip"):
        check_zip(tmp_path / "none.zip", images)
    path = write(tmp_path / "s.zip", members())
    with pytest.raises(UserError, match="nowhere"):
        check_zip(path, tmp_path / "nowhere")
    (images / "test_00001_img.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"test_00001_img\.jpg"):
        check_zip(path, images)


def test_image_size_without_exif_rotation(tmp_path):
    plain = cv2.imencode(".jpg", np.zeros((12, 34, 3), np.uint8))[1].tobytes()
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = plain[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + plain[2:]
    for name, data in (("plain.jpg", plain), ("turned.jpg", turned)):
        (tmp_path / name).write_bytes(data)
        assert image_size(tmp_path / name) == (12, 34)
    png = tmp_path / "png_named.jpg"
    png.write_bytes(cv2.imencode(".png", np.zeros((5, 6), np.uint8))[1].tobytes())
    assert image_size(png) == (5, 6)


def test_command_prints_the_first_problems_and_a_summary(tmp_path, images, capsys):
    for index in range(3, 20):
        cv2.imwrite(str(images / f"test_{index:05d}_img.jpg"), np.zeros((4, 4, 3), np.uint8))
    entries = members() | {f"test_{index:05d}_layer.npz": b"" for index in range(3, 20)}
    path = write(tmp_path / "s.zip", entries)
    assert main([str(path), "--images", str(images)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 12
    assert lines[10] == "... and 7 more problems"
    assert lines[11].endswith("NOT fit to submit: 17 problems, 3 of 20 images right")


def test_a_misspelt_option_names_the_nearest():
    with pytest.raises(UserError, match="did you mean '--images'"):
        main(["a.zip", "--images", "b", "--image", "c"])


def test_exit_codes_from_the_command_line(tmp_path, images):
    def run(*args):
        return subprocess.run(
            [sys.executable, "-m", "spark_seg.submission.check", *map(str, args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    path = write(tmp_path / "s.zip", members())
    good = run(path, "--images", images)
    assert good.returncode == 0, good.stderr
    assert "fit to submit" in good.stdout
    write(path, {})
    assert run(path, "--images", images).returncode == 1
    missing = run(tmp_path / "none.zip", "--images", images)
    assert missing.returncode == 2
    assert missing.stderr.startswith("error: ")
    assert missing.stderr.count("\n") == 1
    assert run(path).returncode == 2


def test_neither_torch_nor_mmseg_is_imported():
    code = (
        "import sys, spark_seg.submission.check, spark_seg.submission.writer, "
        "spark_seg.submission.score, spark_seg.visual\n"
        "heavy = {'torch', 'mmseg', 'mmengine', 'matplotlib', 'deepspeed'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
