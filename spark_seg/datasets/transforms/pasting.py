"""Taking a craft out of a picture, and putting one in, so that neither is seen.

All images are uint8 `[H, W, 3]`, all masks class indices uint8 `[H, W]`; new arrays are returned.
"""

import cv2
import numpy as np

from spark_seg.datasets.transforms.geometry import is_craft
from spark_seg.labels import IGNORE_INDEX

_COARSE = 8  # pixels in a cell of what is smooth
_HALO = 0.006  # of the longer side: how far a craft's light and its ringing reach beyond its mask


def erase_craft(img: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The frame without its craft: image, and mask with background in its place.

    What is smooth is continued from around the hole; what is fine (stars, clouds, grain) is taken from beside it.
    """
    craft = is_craft(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(craft)
    if not width:
        return img, mask
    mask = np.where(craft, np.uint8(0), mask)
    reach = max(2, round(_HALO * max(img.shape[:2])))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    hole = cv2.dilate(craft, disc)
    hole[mask == IGNORE_INDEX] = 0
    known = ((hole == 0) & (mask != IGNORE_INDEX)).view(np.uint8)
    box = _grown((left, top, width, height), reach, mask.shape)
    smooth = _smooth(img, known)
    fine = cv2.subtract(img[box], smooth[box], dtype=cv2.CV_16S)
    fine = _from_beside(img, smooth, hole, known, box, fine)
    filled = cv2.add(smooth[box], fine, dtype=cv2.CV_8U)
    result = img.copy()
    soft = cv2.GaussianBlur(hole[box] * np.uint8(255), (0, 0), reach / 2)
    soft = np.maximum(soft, craft[box] * np.uint8(255))[..., None].astype(np.float32) / 255
    blend = filled * soft + img[box] * (1 - soft)
    inside = (mask[box] != IGNORE_INDEX)[..., None]
    result[box] = np.where(inside, np.rint(blend).astype(np.uint8), img[box])
    return result, mask


def _grown(box: tuple[int, int, int, int], by: int, shape: tuple[int, ...]) -> tuple[slice, slice]:
    """A rectangle (left, top, width, height) grown by some pixels, as far as the frame goes."""
    left, top, width, height = box
    return (
        slice(max(0, top - by), min(shape[0], top + height + by)),
        slice(max(0, left - by), min(shape[1], left + width + by)),
    )


def _smooth(img: np.ndarray, known: np.ndarray) -> np.ndarray:
    """What is coarse in the known pixels, continued over all others: uint8, as `img`."""
    height, width = img.shape[:2]
    small = (max(1, width // _COARSE), max(1, height // _COARSE))
    weight = cv2.resize(known.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    light = cv2.multiply(img, cv2.merge([known] * 3))
    light = cv2.resize(light, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    rare = weight < 0.5  # rounding would weigh too much
    light[rare], weight[rare] = 0, 0
    # From fine to ever coarser means: a cell without a known pixel takes the finest mean that has some.
    value, found = np.array(light), np.array(weight)
    sigma = 1.0
    while float(found.min()) < 1e-3 and sigma < max(small):
        spread = cv2.GaussianBlur(light, (0, 0), sigma)
        share = cv2.GaussianBlur(weight, (0, 0), sigma)
        missing = np.maximum(1 - found, 0)
        value = value + spread * missing[..., None]
        found = found + share * missing
        sigma *= 2
    value = value / np.maximum(found, 1e-6)[..., None]
    return (
        cv2.resize(value, (width, height), interpolation=cv2.INTER_LINEAR)
        .clip(0, 255)
        .astype(np.uint8)
    )


def _from_beside(
    img: np.ndarray,
    smooth: np.ndarray,
    hole: np.ndarray,
    known: np.ndarray,
    box: tuple[slice, slice],
    fine: np.ndarray,
) -> np.ndarray:
    """Detail int16 for the box, from the place beside it that has most of the pixels that the hole lacks."""
    rows, columns = box
    height, width = rows.stop - rows.start, columns.stop - columns.start
    wanted = hole[box] > 0
    best, most = np.zeros_like(fine), 0
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        top = min(max(rows.start + dy * height, 0), img.shape[0] - height)
        left = min(max(columns.start + dx * width, 0), img.shape[1] - width)
        place = np.s_[top : top + height, left : left + width]
        there = known[place] > 0
        usable = int((wanted & there).sum())
        if usable > most:
            most = usable
            best = cv2.subtract(img[place], smooth[place], dtype=cv2.CV_16S)
            best[~there] = 0
        if most == int(wanted.sum()):
            break
    return np.where(wanted[..., None], best, fine)


def paste_craft(
    img: np.ndarray, mask: np.ndarray, behind: np.ndarray, under: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The craft of one frame over another: image and mask.

    Along the outline a pixel is a blend of both frames. What the first frame's own background mixed into it there is
    left out: the outermost pixels take the colour of those inside, but where a part is too thin to have any.

    Args:
        img: The frame with the craft.
        mask: Its labels.
        behind: The frame that is to be seen behind it; not changed.
        under: Its labels.
    """
    craft = is_craft(mask).view(np.uint8)
    left, top, width, height = cv2.boundingRect(craft)
    if not width:
        return behind, under
    place = _grown((left, top, width, height), 3, mask.shape)
    part, colour = craft[place], img[place].astype(np.float32)
    core = cv2.erode(part, np.ones((3, 3), np.uint8), borderValue=1)
    inner = _blurred(core.astype(np.float32), 5)
    from_core = _blurred(colour * core[..., None], 5) / np.maximum(inner, 1e-6)[..., None]
    whole = part.astype(np.float32)
    around = _blurred(whole, 3)
    from_craft = _blurred(colour * part[..., None], 3) / np.maximum(around, 1e-6)[..., None]
    near = inner > 0.02
    rim = near & (core == 0)
    thin = (part > 0) & ~near
    outside = (part == 0) & ~near
    colour[rim] = from_core[rim]
    colour[outside] = from_craft[outside]
    opaque = np.where((core > 0) | thin, np.float32(1), around)[..., None]
    blend = colour * opaque + behind[place] * (1 - opaque)
    result = behind.copy()
    result[place] = np.rint(blend).astype(np.uint8)
    return result, np.where(craft > 0, mask, under)


def _blurred(field: np.ndarray, side: int) -> np.ndarray:
    return cv2.GaussianBlur(field, (side, side), 0, borderType=cv2.BORDER_REPLICATE)
