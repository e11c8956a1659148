"""Images are read whole or refused by name."""

import re

import cv2
import numpy as np
import pytest

from spark_seg.datasets.io import is_complete, read_image
from spark_seg.datasets.jpeg import jpeg_info
from spark_seg.errors import UserError, UserFileNotFoundError

PICTURE = cv2.GaussianBlur(
    np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8), (0, 0), 2
)


def encoded(extension: str, img: np.ndarray = PICTURE, *options: int) -> bytes:
    return cv2.imencode(extension, img, list(options))[1].tobytes()


def message_for(path) -> str:
    with pytest.raises(UserError) as error:
        read_image(path)
    text = str(error.value)
    assert str(path) in text
    assert "\n" not in text
    return text


def test_jpeg_and_png_whatever_they_are_named(tmp_path):
    for name, data in (
        ("a.jpg", encoded(".jpg")),
        ("b.jpg", encoded(".png")),
        ("c.png", encoded(".jpg")),
    ):
        (tmp_path / name).write_bytes(data)
        img = read_image(tmp_path / name)
        assert img.dtype == np.uint8
        assert img.shape == PICTURE.shape
        assert np.abs(img.astype(int) - PICTURE).mean() < 4  # BGR order is kept


def test_greyscale_and_alpha_become_three_channels(tmp_path):
    cv2.imwrite(str(tmp_path / "grey.png"), PICTURE[..., 0])
    np.testing.assert_array_equal(
        read_image(tmp_path / "grey.png"), np.dstack([PICTURE[..., 0]] * 3)
    )
    cv2.imwrite(str(tmp_path / "alpha.png"), np.dstack([PICTURE, PICTURE[..., 0]]))
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), PICTURE)


@pytest.mark.parametrize("extension", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_truncated_files_are_refused(extension, share, tmp_path):
    data = encoded(extension)
    path = tmp_path / f"cut{extension}"
    path.write_bytes(data[: int(len(data) * share)])
    assert "truncated; copy it again" in message_for(path)
    path.write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))  # as some copies end
    assert "truncated" in message_for(path)


def test_a_thumbnails_end_is_not_the_files(tmp_path):
    data, thumbnail = encoded(".jpg"), encoded(".jpg", PICTURE[::4, ::4])
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    whole = data[:2] + segment + data[2:]
    assert is_complete(whole)
    assert not is_complete(whole[:-200])


def test_trailing_bytes_are_no_harm():
    assert is_complete(encoded(".jpg") + b"\0" * 50)
    assert is_complete(encoded(".png") + b"\n")


def test_other_bad_files(tmp_path):
    path = tmp_path / "image.jpg"
    with pytest.raises(UserFileNotFoundError, match="no such file"):
        read_image(path)
    path.write_bytes(b"")
    assert "empty" in message_for(path)
    path.write_text("<html>404</html>")
    assert "check_dataset" in message_for(path)
    path.write_bytes(b"\xff\xd8\xff\xe0 nonsense \xff\xda nonsense \xff\xd9")
    assert "decoded" in message_for(path)
    folder = tmp_path / "folder.jpg"
    folder.mkdir()
    assert "cannot be read" in message_for(folder)


@pytest.mark.parametrize("quality", [10, 49, 50, 75, 95, 100])
@pytest.mark.parametrize("name", ["444", "422", "420", "440", "411"])
def test_jpeg_headers(quality, name):
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")
    data = encoded(
        ".jpg",
        PICTURE,
        cv2.IMWRITE_JPEG_QUALITY,
        quality,
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
        factor,
    )
    info = jpeg_info(data)
    assert (info.width, info.height, info.quality) == (64, 48, quality)
    assert info.subsampling == ":".join(name)
    assert info.chroma_is_coarser == (name != "444")
    assert not info.rgb


def test_jpeg_headers_of_other_files():
    assert jpeg_info(encoded(".jpg", PICTURE[..., 0])).subsampling == "grey"
    assert jpeg_info(encoded(".png")) is None
    data = encoded(".jpg")
    scan = re.search(rb"\xff\xda", data).start()
    assert all(jpeg_info(data[:k]) is None for k in range(scan))
    progressive = encoded(".jpg", PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert jpeg_info(progressive).width == 64


def test_memory_is_kept():
    """Decoding again asks the system for no new pages; without glibc there is nothing to test."""
    import subprocess
    import sys

    code = """
import resource, sys
import cv2, numpy as np
from spark_seg.datasets.memory import reuse_memory
data = cv2.imencode(".jpg", np.zeros((1024, 1024, 3), np.uint8))[1]
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        cv2.imdecode(data, cv2.IMREAD_COLOR)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
if not reuse_memory():
    print("skip")
else:
    faults()
    print(faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    if done.stdout.strip() == "skip":
        pytest.skip("no glibc, or MALLOC_ variables are set")
    assert int(done.stdout) < 20 * 300  # a frame has 768 pages
