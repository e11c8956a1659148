"""The faults: what holds for every kind, and what each one alone is for."""

import subprocess
import sys
import zlib
from itertools import pairwise

import cv2
import numpy as np
import pytest

from spark_seg.corruptions import KINDS, SEVERITIES, apply, choose_kinds, corrupt, generator
from spark_seg.corruptions.optics import disc_kernel, line_kernel
from spark_seg.errors import UserError

# The brightness at which faults that only darken, only clip or only need highlights all have something to do.
SIZES = [(96, 128), (512, 512), (37, 301), (200, 64)]


def frame(height: int = 256, width: int = 256, seed: int = 0) -> np.ndarray:
    """A frame with soft clouds, a sharp craft with a highlight, and dark sky."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 120, (6, 6, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    image += rng.normal(0, 6, image.shape).astype(np.float32)
    image = np.clip(image, 0, 255).astype(np.uint8)
    top, left = height // 3, width // 3
    image[top : 2 * top, left : 2 * left] = (90, 140, 190)
    image[top : top + max(2, height // 20), left : left + max(2, width // 12)] = 252
    return image


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_severity_0_is_the_image(self, kind: str) -> None:
        image = frame()
        result = corrupt(image, kind, 0, "a")
        np.testing.assert_array_equal(result, image)
        assert not np.shares_memory(result, image)

    def test_worse_severities_differ_more(self, kind: str) -> None:
        for seed, (height, width) in enumerate(SIZES):
            image = frame(height, width, seed)
            faults = [
                cv2.absdiff(corrupt(image, kind, s, f"id{seed}"), image).mean() for s in SEVERITIES
            ]
            assert faults[0] > 0, (kind, height, width)
            assert all(a < b for a, b in pairwise(faults)), (kind, faults)

    def test_result_is_an_image_of_the_same_size_and_the_input_stays(self, kind: str) -> None:
        for height, width in [(1, 1), (1, 40), (40, 1), (2, 3), (7, 5), (33, 129)]:
            image = frame(128, 192)[:height, :width]  # not contiguous
            before = image.copy()
            for severity in (1, 5):
                result = corrupt(image, kind, severity, "x")
                assert (result.shape, result.dtype) == ((height, width, 3), np.uint8)
            np.testing.assert_array_equal(image, before)

    def test_black_and_white_frames(self, kind: str) -> None:
        for value in (0, 255):
            flat = np.full((64, 80, 3), value, np.uint8)
            assert corrupt(flat, kind, 5, "flat").shape == flat.shape

    def test_same_whatever_came_before(self, kind: str) -> None:
        image = frame()
        first = corrupt(image, kind, 3, "Soho/val/image_00001")
        for other in KINDS:
            corrupt(image, other, 5, "Soho/val/image_00002")
        np.random.seed(1)  # noqa: NPY002 - the global generator must have no part in it
        cv2.setRNGSeed(7)
        np.testing.assert_array_equal(corrupt(image, kind, 3, "Soho/val/image_00001"), first)

    def test_geometry_stays(self, kind: str) -> None:
        """A symmetric craft stays where it is: the middle of what differs from the sky does not move."""
        image = np.full((256, 256, 3), 30, np.uint8)
        image[96:160, 80:176] = 170
        box = np.zeros((256, 256), np.float32)
        box[96:160, 80:176] = 1
        result = corrupt(image, kind, 2, "g").astype(np.float32).mean(2)
        result = cv2.medianBlur(result, 5)
        # Best match of the craft's shape against the result, within 3 px either way
        scores = cv2.matchTemplate(np.pad(result, 3, mode="edge"), box - box.mean(), cv2.TM_CCORR)
        best = np.unravel_index(int(scores.argmax()), scores.shape)
        assert best == (3, 3)

    def test_severities_between_are_between(self, kind: str) -> None:
        image = frame(512, 512)
        mild, middle, bad = (
            cv2.absdiff(corrupt(image, kind, s, "q"), image).mean() for s in (1, 2.5, 4)
        )
        assert mild < middle < bad


RANDOM = [
    "noise",
    "hot_pixels",
    "motion_blur",
    "glare",
    "colour_cast",
    "dropped_lines",
    "vignetting",
]


@pytest.mark.parametrize("kind", RANDOM)
def test_another_sample_has_another_fault(kind: str) -> None:
    image = frame()
    assert (corrupt(image, kind, 4, "a") != corrupt(image, kind, 4, "b")).any()


def test_same_in_another_process() -> None:
    image = frame(64, 64)
    here = [
        zlib.crc32(corrupt(image, kind, 3, "Cheops/val/image_00003").tobytes()) for kind in RANDOM
    ]
    code = (
        "import sys, zlib, numpy as np; from spark_seg.corruptions import corrupt\n"
        "image = np.frombuffer(sys.stdin.buffer.read(), np.uint8).reshape(64, 64, 3)\n"
        f"print([zlib.crc32(corrupt(image, k, 3, 'Cheops/val/image_00003').tobytes()) for k in {RANDOM}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=image.tobytes(), capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == str(here)


def test_milder_severities_are_part_of_worse_ones() -> None:
    image = np.full((256, 256, 3), 90, np.uint8)
    for kind in ("hot_pixels", "dropped_lines"):
        touched = [(corrupt(image, kind, s, "n") != image).any(2) for s in SEVERITIES]
        for less, more in pairwise(touched):
            assert more[less].all()


def test_noise_has_the_deviation_it_says() -> None:
    grey = np.full((512, 512, 3), 128, np.uint8)
    fault = corrupt(grey, "noise", 3, "n").astype(float) - 128
    assert abs(fault.mean()) < 0.1
    assert fault.std() == pytest.approx(np.sqrt(10**2 + 1.4 * 128), rel=0.02)


def test_bit_depth_leaves_as_many_levels() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
    for severity, bits in zip(SEVERITIES, (6, 5, 4, 3, 2), strict=True):
        levels = np.unique(corrupt(ramp, "bit_depth", severity, "r"))
        assert len(levels) == 2**bits
        assert levels[0] == 0
        assert levels[-1] == 255


def test_blur_scales_with_the_frame() -> None:
    """The same scene at half the size, blurred, is the blurred scene at half the size."""
    large = cv2.GaussianBlur(frame(1024, 1024), (0, 0), 4)
    small = cv2.resize(large, (512, 512), interpolation=cv2.INTER_AREA)
    for kind in ("defocus", "motion_blur"):
        blurred = corrupt(large, kind, 4, "s")
        reference = cv2.resize(blurred, (512, 512), interpolation=cv2.INTER_AREA)
        assert cv2.absdiff(corrupt(small, kind, 4, "s"), reference).mean() < 1.0


def test_kernels_are_symmetric_and_keep_the_light() -> None:
    for kernel in (line_kernel(9.3, 0.7), line_kernel(0.2, 2), disc_kernel(3.4), disc_kernel(0.2)):
        assert kernel.sum() == pytest.approx(1, abs=1e-6)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-6)


def test_what_is_wrong_is_told() -> None:
    image = frame(16, 16)
    with pytest.raises(UserError, match="did you mean 'motion_blur'"):
        corrupt(image, "motionblur", 1, "a")
    with pytest.raises(UserError, match="there are noise, hot_pixels"):
        choose_kinds(["zzzz"])
    for severity in (-1, 5.1, float("nan")):
        with pytest.raises(UserError, match="severity"):
            corrupt(image, "noise", severity, "a")
    for wrong in (image.astype(np.float32), image[..., 0], image[..., :2], image[:0]):
        with pytest.raises(TypeError, match="uint8"):
            corrupt(wrong, "noise", 1, "a")


def test_choice_of_kinds() -> None:
    assert choose_kinds([]) == list(KINDS)
    assert choose_kinds(["jpeg", "noise", "jpeg"]) == ["noise", "jpeg"]
    fault = KINDS["noise"].fault
    image = frame(32, 32)
    own = apply(fault, image, 2, generator("noise", "z"))
    np.testing.assert_array_equal(own, corrupt(image, "noise", 2, "z"))


def test_importing_needs_no_torch() -> None:
    code = (
        "import sys, spark_seg.corruptions; print('torch' in sys.modules, 'mmseg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.split() == ["False", "False"]
