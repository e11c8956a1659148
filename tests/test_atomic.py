"""Files are the old one or the new one, whatever happens while they are written."""

import errno
import os

import pytest

from spark_seg.atomic import make_folder, replacing, user_errors, write_bytes, write_error
from spark_seg.errors import UserError


def test_replaces_in_one_step(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with replacing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    write_bytes(path, b"newer", sync=False)
    assert path.read_text() == "newer"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with replacing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_names_the_file_and_not_its_shadow(tmp_path):
    path = tmp_path / "a.bin"
    (tmp_path / "a.bin.tmp").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"no room left while writing .*a\.bin \("):
        write_bytes(path, bytes(100_000))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_what_the_user_can_mend_is_told(code):
    told = write_error(OSError(code, "x"), "out/a.zip")
    assert told is not None
    assert "out/a.zip" in str(told)


def test_what_the_user_cannot_mend_keeps_its_traceback():
    assert write_error(OSError(errno.EIO, "x"), "a") is None
    with pytest.raises(OSError, match="x") as error, user_errors("a"):
        raise OSError(errno.EIO, "x")
    assert not isinstance(error.value, UserError)


def test_a_user_error_passes_through():
    with pytest.raises(UserError, match=r"^mine$"), user_errors("a"):
        raise UserError("mine")


def test_folders(tmp_path):
    assert make_folder(tmp_path / "a" / "b").is_dir()
    make_folder(tmp_path / "a" / "b")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another output folder"):
        make_folder(tmp_path / "file")
    with pytest.raises(UserError, match="choose another output folder"):
        make_folder(tmp_path / "file" / "c")


def test_a_folder_that_may_not_be_written_is_told_at_once(tmp_path, monkeypatch):
    assert make_folder(tmp_path) == tmp_path
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may anything
    with pytest.raises(UserError, match=f"cannot write {tmp_path} .Permission denied.: choose"):
        make_folder(tmp_path)
