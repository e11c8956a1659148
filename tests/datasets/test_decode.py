"""Decoders agree; pictures are decoded as large as they are needed."""

import cv2
import numpy as np
import pytest

from spark_seg.datasets import decode as module
from spark_seg.datasets.decode import (
    Undecoded,
    average_blocks,
    decode_image,
    image_size,
    open_image,
)
from spark_seg.datasets.io import decode, read_image
from spark_seg.errors import UserError

FLAGS = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


def picture(height: int = 120, width: int = 136) -> np.ndarray:
    rng = np.random.default_rng(0)
    img = cv2.GaussianBlur(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), (0, 0), 1)
    return cv2.normalize(img, None, 0, 255, cv2.NORM_MINMAX)


def jpeg(img: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", img, list(options))[1].tobytes()


def test_pictures_that_are_warped_are_written_through_the_processors_caches(monkeypatch):
    """libjpeg-turbo goes past them where rows begin at multiples of 32 bytes, and the warp then waits for memory."""
    simplejpeg = pytest.importorskip("simplejpeg")

    class Spy:
        decode_jpeg_header = staticmethod(simplejpeg.decode_jpeg_header)

        @staticmethod
        def decode_jpeg(*args, **options):
            img = simplejpeg.decode_jpeg(*args, **options)
            starts.append(img.ctypes.data % 32)
            return img

    starts: list[int] = []
    monkeypatch.setattr(module, "fast_decoder", lambda: Spy)
    data = jpeg(picture(128, 160))
    expected = decode(data, "x", FLAGS[1])
    for _ in range(5):
        four = decode_image(data, "x", alpha=True)
        assert four.shape == (128, 160, 4)
        np.testing.assert_array_equal(four[..., :3], expected)
    assert starts == [16] * 5


@pytest.fixture
def without_simplejpeg(monkeypatch):
    monkeypatch.setattr(module, "fast_decoder", lambda: None)


@pytest.mark.parametrize("reduce", [1, 2, 4, 8])
@pytest.mark.parametrize("sampling", ["444", "422", "420", "440"])
@pytest.mark.parametrize("shape", [(120, 136), (61, 47)])
def test_simplejpeg_gives_opencvs_pixels(reduce, sampling, shape):
    pytest.importorskip("simplejpeg")
    factor = getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{sampling}")
    for quality in (50, 95):
        data = jpeg(
            picture(*shape),
            cv2.IMWRITE_JPEG_QUALITY,
            quality,
            cv2.IMWRITE_JPEG_SAMPLING_FACTOR,
            factor,
        )
        expected = decode(data, "x", FLAGS[reduce])
        assert expected.shape[:2] == tuple(-(-n // reduce) for n in shape)
        np.testing.assert_array_equal(decode_image(data, "x", reduce), expected)
        four = decode_image(data, "x", reduce, shape, alpha=True)
        assert four.shape[2] == 4
        np.testing.assert_array_equal(four[..., :3], expected)


def test_other_jpegs_decode_alike(tmp_path):
    pytest.importorskip("simplejpeg")
    grey, progressive = picture()[..., 0], jpeg(picture(), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    for data in (jpeg(grey), progressive):
        for reduce in (1, 2):
            expected = decode(data, "x", FLAGS[reduce])
            np.testing.assert_array_equal(decode_image(data, "x", reduce), expected)
    # damage in the middle: whatever OpenCV says holds
    data = bytearray(jpeg(picture()))
    data[len(data) // 2 : len(data) // 2 + 20] = bytes(20)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = decode(bytes(data), "x", FLAGS[1])
    np.testing.assert_array_equal(read_image(tmp_path / "a.jpg"), expected)


@pytest.mark.usefixtures("without_simplejpeg")
def test_opencv_alone_is_enough():
    data = jpeg(picture())
    for reduce in (1, 2, 4, 8):
        img = decode_image(data, "x", reduce, alpha=True)
        np.testing.assert_array_equal(img, decode(data, "x", FLAGS[reduce]))
    assert image_size(data) == (120, 136)


def test_a_reduced_jpeg_is_an_average_of_blocks():
    """The scaled transform is a mean over blocks but for rounding and clipping."""
    img = cv2.GaussianBlur(picture(128, 128), (0, 0), 2)
    data = jpeg(img, cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, 0x111111)
    whole = decode_image(data, "x")
    for reduce in (2, 4, 8):
        off = np.abs(decode_image(data, "x", reduce).astype(int) - average_blocks(whole, reduce))
        assert off.mean() < 0.6


def test_other_files_are_averaged(tmp_path):
    img = picture(21, 30)
    cv2.imwrite(str(tmp_path / "a.png"), img)
    held = open_image(tmp_path / "a.png", 1.0)
    assert held.shape == (21, 30, 3)
    half = held.pixels(2)
    assert half.shape == (11, 15, 3)
    mean = img[:20].reshape(10, 2, 15, 2, 3).mean((1, 3))
    assert np.abs(half[:10] - mean).max() <= 0.5
    np.testing.assert_array_equal(half[10], average_blocks(np.repeat(img[20:], 2, 0), 2)[0])


@pytest.mark.parametrize(
    ("scale", "enlarge", "reduce"),
    [
        (1, 1, 1),
        (0.51, 1, 1),
        (0.5, 1, 2),
        (0.6, 1.25, 2),
        (0.63, 1.25, 1),
        (0.25, 1, 4),
        (0.1, 1, 8),
    ],
)
def test_which_reduction(scale, enlarge, reduce):
    held = Undecoded(b"", "x", 100, 100, enlarge=enlarge)
    assert held.reduction(scale) == reduce
    assert Undecoded(b"", "x", 100, 100, 2, enlarge).reduction(scale) == max(2, reduce)


def test_bad_files_are_named(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"\xff\xd8\xff\xe0 nonsense \xff\xda nonsense \xff\xd9")
    with pytest.raises(UserError, match=r"a\.jpg.*decoded"):
        open_image(path, 1.0)
    path.write_bytes(jpeg(picture())[:300])
    with pytest.raises(UserError, match="truncated"):
        open_image(path, 1.0)
