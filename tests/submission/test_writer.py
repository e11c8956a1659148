"""The writer: a zip that numpy and the check accept; resumed, on a full disk, in a wrong folder."""

import errno
import io
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from spark_seg.errors import UserError
from spark_seg.labels import from_submission
from spark_seg.submission.check import check_zip
from spark_seg.submission.writer import SubmissionWriter

ROOT = Path(__file__).resolve().parents[2]
NAMES = [f"test_{index:05d}_img.jpg" for index in range(6)]


def labels(name, size=(40, 50)):
    rng = np.random.default_rng(int(name[5:10]))
    mask = np.zeros(size, np.uint8)
    y, x = rng.integers(0, 20, 2)
    mask[y : y + 15, x : x + 15] = 1
    mask[y + 5 : y + 8, x : x + 30] = 2
    return mask


def fill(writer, count=None):
    for name in writer.pending[:count]:
        writer.add(name, labels(name))


def complete(folder, **options):
    writer = SubmissionWriter(folder, NAMES, **options)
    fill(writer)
    return writer.finish()


@pytest.mark.parametrize("dtype", [bool, np.uint8, "bool", "uint8"])
def test_the_zip_as_numpy_reads_it(tmp_path, dtype):
    path = complete(tmp_path / "new" / "out", dtype=dtype)
    assert path == tmp_path / "new" / "out" / "submission.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"test_{index:05d}_layer.npz" for index in range(6)]
        assert {info.compress_type for info in archive.infolist()} == {zipfile.ZIP_STORED}
        for name in NAMES:
            data = archive.read(name.replace("_img.jpg", "_layer.npz"))
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                assert file.files == ["data"]
                array = file["data"]
            assert array.dtype == np.dtype(dtype)
            np.testing.assert_array_equal(array[..., 0] != 0, labels(name) == 1)
            np.testing.assert_array_equal(array[..., 2] != 0, labels(name) == 2)
            assert not array[..., 1].any()
            np.testing.assert_array_equal(from_submission(array, name), labels(name))
    assert check_zip(path, NAMES).ok
    assert [p.name for p in path.parent.iterdir()] == ["submission.zip"]


def test_members_can_be_kept(tmp_path):
    path = complete(tmp_path, keep_npz=True)
    kept = sorted(p.name for p in (tmp_path / "npz").iterdir())
    assert kept == zipfile.ZipFile(path).namelist()
    again = SubmissionWriter(tmp_path, NAMES, keep_npz=True)
    assert again.pending == []
    before = path.read_bytes()
    assert again.finish().read_bytes() == before


def test_resumed_is_byte_for_byte_the_uninterrupted(tmp_path, capsys):
    whole = complete(tmp_path / "one", fingerprint="a").read_bytes()
    fill(SubmissionWriter(tmp_path / "two", NAMES, fingerprint="a"), 4)
    (tmp_path / "two" / "npz" / "test_00005_layer.npz.tmp").write_bytes(b"half")
    writer = SubmissionWriter(tmp_path / "two", NAMES, fingerprint="a")
    assert writer.resumed == 4
    assert writer.pending == NAMES[4:]
    assert "4 of 6 images are done" in capsys.readouterr().err
    for name in reversed(writer.pending):
        writer.add(name, labels(name))
    assert writer.finish().read_bytes() == whole
    assert [p.name for p in (tmp_path / "two").iterdir()] == ["submission.zip"]


@pytest.mark.parametrize(
    "change",
    [{"fingerprint": "b"}, {"dtype": "uint8"}, {"names": NAMES[:5]}, {"names": NAMES[::-1]}],
)
def test_anything_changed_starts_afresh_and_says_so(tmp_path, capsys, change):
    options = {"names": NAMES, "fingerprint": "a", "dtype": bool}
    fill(SubmissionWriter(tmp_path, **options), 4)
    capsys.readouterr()
    writer = SubmissionWriter(tmp_path, **(options | change))
    assert writer.resumed == 0
    assert writer.pending == list((options | change)["names"])
    assert "starting afresh" in capsys.readouterr().err
    assert list((tmp_path / "npz").iterdir()) == []


def test_a_damaged_state_starts_afresh(tmp_path):
    for damage in (b"", b"[1]", b"\xff\xfe", b"{"):
        fill(SubmissionWriter(tmp_path, NAMES), 2)
        (tmp_path / "submission_state.json").write_bytes(damage)
        assert SubmissionWriter(tmp_path, NAMES).resumed == 0


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-40], lambda data: b"", lambda data: b"x" * 50]
)
def test_a_damaged_member_is_done_again(tmp_path, damage):
    fill(SubmissionWriter(tmp_path, NAMES), 4)
    member = tmp_path / "npz" / "test_00002_layer.npz"
    member.write_bytes(damage(member.read_bytes()))
    writer = SubmissionWriter(tmp_path, NAMES)
    assert writer.pending == [NAMES[2], *NAMES[4:]]
    fill(writer)
    assert check_zip(writer.finish(), NAMES).ok


def test_a_fresh_run_says_nothing(tmp_path, capsys):
    complete(tmp_path)
    complete(tmp_path)
    assert capsys.readouterr().err == ""


def test_killed_in_the_middle(tmp_path):
    """A real kill -9, at whatever point it falls; then the rest, and the same bytes."""
    script = textwrap.dedent(
        """
        import sys
        sys.path.insert(0, sys.argv[2])
        from test_writer import NAMES, labels
        from spark_seg.submission.writer import SubmissionWriter
        writer = SubmissionWriter(sys.argv[1], NAMES)
        while True:
            for name in NAMES[:5]:
                writer.add(name, labels(name, (400, 500)))
        """
    )
    here = str(Path(__file__).parent)
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "out"), here], cwd=ROOT
    )
    try:
        for _ in range(600):
            if len(list((tmp_path / "out").glob("npz/*_layer.npz"))) >= 2:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    writer = SubmissionWriter(tmp_path / "out", NAMES)
    assert writer.resumed >= 2
    other = SubmissionWriter(tmp_path / "other", NAMES)
    for each in (writer, other):
        for name in each.pending:
            each.add(name, labels(name, (400, 500)))
    assert writer.finish().read_bytes() == other.finish().read_bytes()


def test_an_unfinished_run_makes_no_zip(tmp_path):
    writer = SubmissionWriter(tmp_path, NAMES)
    fill(writer, 2)
    with pytest.raises(UserError, match=r"4 of 6 images .* first test_00002_img\.jpg"):
        writer.finish()
    assert not (tmp_path / "submission.zip").exists()
    fill(writer)
    assert writer.finish().exists()


def test_the_zip_is_compared_with_the_images(tmp_path):
    images = [tmp_path / name for name in NAMES]
    for image in images:
        cv2.imwrite(str(image), np.zeros((40, 50, 3), np.uint8))
    writer = SubmissionWriter(tmp_path / "out", images)
    for image in images:
        writer.add(image, labels(image.name, (40, 51) if "00003" in image.name else (40, 50)))
    (tmp_path / "out" / "submission.zip").write_bytes(b"older")
    with pytest.raises(UserError, match=r"test_00003_layer\.npz: the shape is \[40, 51, 3\]"):
        writer.finish()
    assert (tmp_path / "out" / "submission.zip").read_bytes() == b"older"
    assert not list((tmp_path / "out").glob("*.tmp"))
    assert writer.pending == [str(images[3])]
    writer.add(images[3].name, labels(images[3].name))
    assert writer.finish().read_bytes()[:2] == b"PK"
    assert writer.report is not None
    assert writer.report.sizes == {(40, 50): 6}


def test_wrong_calls(tmp_path):
    writer = SubmissionWriter(tmp_path, NAMES)
    with pytest.raises(ValueError, match="none of the submission's images"):
        writer.add("test_00099_img.jpg", labels(NAMES[0]))
    with pytest.raises(ValueError, match="int64"):
        writer.add(NAMES[0], labels(NAMES[0]).astype(int))
    with pytest.raises(ValueError, match="other values"):
        writer.add(NAMES[0], np.full((4, 4), 3, np.uint8))
    assert writer.pending == NAMES
    with pytest.raises(UserError, match="bool or uint8, not float32"):
        SubmissionWriter(tmp_path, NAMES, dtype=np.float32)
    with pytest.raises(UserError, match=r"a_img\.jpg and a\.jpg"):
        SubmissionWriter(tmp_path, ["a_img.jpg", "a.jpg"])


# --- full disk ---


def out_files(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def test_disk_full_while_writing_the_zip(tmp_path):
    """/dev/full is a disk on which every write really fails with ENOSPC."""
    (tmp_path / "submission.zip").write_bytes(b"older")
    writer = SubmissionWriter(tmp_path, NAMES)
    fill(writer)
    (tmp_path / "submission.zip.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no room left while writing .*submission\.zip") as error:
        writer.finish()
    assert "\n" not in str(error.value)
    assert (tmp_path / "submission.zip").read_bytes() == b"older"
    assert not list(tmp_path.rglob("*.tmp"))
    # With room again nothing has to be predicted twice.
    again = SubmissionWriter(tmp_path, NAMES)
    assert again.pending == []
    assert check_zip(again.finish(), NAMES).ok


def test_disk_full_while_writing_a_member(tmp_path):
    writer = SubmissionWriter(tmp_path, NAMES)
    fill(writer, 2)
    own = f"{socket.gethostname()}.{os.getpid()}."  # processes may write one member at once
    (tmp_path / "npz" / f"{own}test_00002_layer.npz.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match="no room left"):
        writer.add(NAMES[2], labels(NAMES[2]))
    assert sorted(os.listdir(tmp_path / "npz")) == ["test_00000_layer.npz", "test_00001_layer.npz"]
    assert SubmissionWriter(tmp_path, NAMES).pending == NAMES[2:]


@pytest.mark.parametrize("after", [0, 1, 3, 5])
def test_disk_full_at_any_write_of_the_zip(tmp_path, monkeypatch, after):
    whole = complete(tmp_path / "other").read_bytes()
    folder = tmp_path / "out"
    complete(folder)
    writer = SubmissionWriter(folder, NAMES, fingerprint="new")
    fill(writer)
    calls = 0
    real = zipfile.ZipFile.writestr

    def failing(self, info, data, *rest, **more):
        nonlocal calls
        calls += 1
        if calls > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, info, data, *rest, **more)

    monkeypatch.setattr(zipfile.ZipFile, "writestr", failing)
    with pytest.raises(UserError, match="no room left"):
        writer.finish()
    assert calls == after + 1
    assert (folder / "submission.zip").read_bytes() == whole
    assert not list(folder.rglob("*.tmp"))


LIMITED = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from test_writer import NAMES, labels
import numpy as np
from spark_seg.errors import UserError
from spark_seg.submission.writer import SubmissionWriter
writer = SubmissionWriter(sys.argv[1], NAMES)
rng = np.random.default_rng(0)
for name in writer.pending:
    writer.add(name, rng.integers(0, 3, (60, 60)).astype(np.uint8))
size = max(p.stat().st_size for p in writer.folder.glob("npz/*"))
resource.setrlimit(resource.RLIMIT_FSIZE, (2 * size, 2 * size))
try:
    writer.finish()
except UserError as error:
    print(error)
    sys.exit(7)
"""


def test_a_file_larger_than_the_quota(tmp_path):
    """The kernel really refuses the write halfway through the zip."""
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(out), str(Path(__file__).parent)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 7, done.stderr
    assert "no room left while writing" in done.stdout
    assert done.stdout.count("\n") == 1
    assert not list(out.rglob("*.tmp"))
    assert not (out / "submission.zip").exists()
    writer = SubmissionWriter(out, NAMES)
    assert writer.pending == []
    assert writer.finish().exists()


def test_a_really_full_file_system(tmp_path):
    """A tmpfs of 128 KiB; needs the right to mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("no right to mount a tmpfs here")
    try:
        rng = np.random.default_rng(0)
        writer = SubmissionWriter(disk / "out", NAMES)
        noise = [rng.integers(0, 3, (400, 400)).astype(np.uint8) for _ in NAMES]
        with pytest.raises(UserError, match="no room left"):
            list(map(writer.add, NAMES, noise))
        done = len(NAMES) - len(writer.pending)
        assert 0 < done < len(NAMES)
        assert not list(disk.rglob("*.tmp"))
        assert SubmissionWriter(disk / "out", NAMES).resumed == done
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# --- wrong folders ---


def test_a_file_in_place_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("a file")
    for folder in (tmp_path / "out", tmp_path / "out" / "inner"):
        with pytest.raises(UserError, match=r"cannot write .*choose another output folder"):
            SubmissionWriter(folder, NAMES)
    assert (tmp_path / "out").read_text() == "a file"


def test_a_folder_that_may_not_be_written(tmp_path):
    if os.geteuid() == 0:
        # Root may write everywhere but in the kernel's own folders.
        with pytest.raises(UserError, match="cannot write"):
            SubmissionWriter("/proc/self/submission", NAMES)
        return
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot write"):
        SubmissionWriter(tmp_path, NAMES)


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_folder_that_is_read_only(tmp_path, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("spark_seg.atomic.open", refuse, raising=False)
    with pytest.raises(UserError, match=f"cannot write .*{os.strerror(code)}"):
        SubmissionWriter(tmp_path, NAMES)


def test_other_faults_keep_their_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("spark_seg.atomic.open", broken, raising=False)
    with pytest.raises(OSError, match="Input/output") as error:
        SubmissionWriter(tmp_path, NAMES)
    assert not isinstance(error.value, UserError)


def test_an_npz_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "npz").mkdir()
    (tmp_path / "npz" / "mine_layer.npz").write_text("precious")
    with pytest.raises(UserError, match="holds files of something else"):
        SubmissionWriter(tmp_path, NAMES)
    assert (tmp_path / "npz" / "mine_layer.npz").read_text() == "precious"


def test_foreign_files_among_the_members_stay(tmp_path):
    writer = SubmissionWriter(tmp_path, NAMES)
    (tmp_path / "npz" / "notes.txt").write_text("mine")
    fill(writer)
    writer.finish()
    assert out_files(tmp_path) == ["npz", "npz/notes.txt", "submission.zip"]
