"""Taking a craft out of a picture, and putting one in, so that neither is seen.

All images are uint8 `[H, W, 3]`, all masks class indices uint8 `[H, W]`; new arrays are returned.
"""

import cv2
import numpy as np

from spark_seg.datasets.transforms.geometry import is_craft
from spark_seg.labels import IGNORE_INDEX

_COARSE = 4  # pixels in a cell of what is smooth
Box = tuple[slice, slice]
_FINE = 12  # pixels in a cell that texture is finer than
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
    smooth = _smooth(img, known, box)
    fine = _from_beside(img, known, box, hole[box], smooth)
    filled = cv2.add(smooth, fine, dtype=cv2.CV_8U)
    result = img.copy()
    soft = cv2.GaussianBlur(hole[box] * np.uint8(255), (0, 0), reach / 2)
    soft = np.maximum(soft, craft[box] * np.uint8(255))[..., None].astype(np.float32) / 255
    blend = filled * soft + img[box] * (1 - soft)
    inside = (mask[box] != IGNORE_INDEX)[..., None]
    result[box] = np.where(inside, np.rint(blend).astype(np.uint8), img[box])
    return result, mask


def _grown(box: tuple[int, int, int, int], by: int, shape: tuple[int, ...]) -> Box:
    """A rectangle (left, top, width, height) grown by some pixels, as far as the frame goes."""
    left, top, width, height = box
    return (
        slice(max(0, top - by), min(shape[0], top + height + by)),
        slice(max(0, left - by), min(shape[1], left + width + by)),
    )


def _smooth(img: np.ndarray, known: np.ndarray, box: Box) -> np.ndarray:
    """What is coarse in the box's known pixels, continued over the others from around them: uint8 `[h, w, 3]`.

    Telea's inpainting (J. Graphics Tools 9, 2004) of a reduced picture, which goes on along edges such as Earth's limb.
    """
    rows, columns = box
    place = _grown(
        (columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start),
        6 * _COARSE,
        known.shape,
    )
    part, there = img[place], known[place]
    height, width = there.shape
    small = (max(1, width // _COARSE), max(1, height // _COARSE))
    share = cv2.resize(there * np.uint8(255), small, interpolation=cv2.INTER_AREA)
    light = cv2.multiply(part, cv2.merge([there] * 3))
    light = cv2.resize(light, small, interpolation=cv2.INTER_AREA)
    light = cv2.divide(light, cv2.merge([np.maximum(share, 1)] * 3), scale=255)
    light = cv2.inpaint(light, (share < 128).view(np.uint8), 4, cv2.INPAINT_TELEA)
    whole = cv2.resize(light, (width, height), interpolation=cv2.INTER_LINEAR)
    top, left = rows.start - place[0].start, columns.start - place[1].start
    return whole[top : top + rows.stop - rows.start, left : left + columns.stop - columns.start]


def _from_beside(
    img: np.ndarray, known: np.ndarray, box: Box, hole: np.ndarray, smooth: np.ndarray
) -> np.ndarray:
    """Detail int16 `[h, w, 3]` for the box, from where beside it the frame is most like `smooth` in it.

    0 where there is no known pixel.
    """
    rows, columns = box
    height, width = hole.shape
    wanted = max(1, cv2.countNonZero(hole))
    best, least = box, np.inf
    for dy, dx in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)):
        top = min(max(rows.start + dy * height, 0), img.shape[0] - height)
        left = min(max(columns.start + dx * width, 0), img.shape[1] - width)
        place = slice(top, top + height), slice(left, left + width)
        usable = known[place] & hole
        missing = 1 - cv2.countNonZero(usable) / wanted
        unlike = cv2.norm(img[place], smooth, cv2.NORM_L1, mask=usable) / (3 * wanted)
        if 255 * missing + unlike < least:
            best, least = place, 255 * missing + unlike
    # What is finer than `_FINE` pixels there; means are of known pixels alone, or the craft would shine through.
    part, there = img[best], known[best]
    small = (max(1, width // _FINE), max(1, height // _FINE))
    share = cv2.resize(there.astype(np.float32), small, interpolation=cv2.INTER_AREA)
    light = cv2.multiply(part, cv2.merge([there] * 3))
    light = cv2.resize(light, small, interpolation=cv2.INTER_AREA).astype(np.float32)
    share, light = _blurred(share, 3), _blurred(light, 3)
    mean = cv2.resize(light / np.maximum(share, 1e-3)[..., None], (width, height))
    fine = cv2.subtract(part, np.rint(mean).clip(0, 255).astype(np.uint8), dtype=cv2.CV_16S)
    fine[(there & hole) == 0] = 0
    # an edge such as Earth's limb is no texture: it would be seen where it does not belong
    most = (smooth // 3 + np.uint8(8)).astype(np.int16)
    return np.clip(fine, -most, most)


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
