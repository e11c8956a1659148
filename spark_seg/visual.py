"""Pictures to look at: labels over images, errors over images, sheets of tiles.

All images are uint8 BGR [H, W, 3], labels uint8 [H, W] with class indices.
"""

import os
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.labels import CLASSES, IGNORE_INDEX

# Red and blue as in the masks, lightened so that a thin line stands out on black and on clouds.
_BODY, _PANEL = CLASSES.index("body"), CLASSES.index("panel")
PART_COLOURS = {_BODY: (70, 70, 255), _PANEL: (255, 130, 40)}
# From the Okabe-Ito palette, which colour-blind readers can tell apart.
ERROR_COLOURS = {
    "missed": (0, 94, 213),
    "false alarm": (233, 180, 86),
    "wrong part": (66, 228, 240),
}
_IGNORED = (128, 128, 128)
_PAPER, _INK, _DIM = (24, 24, 24), (235, 235, 235), (160, 160, 160)
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def overlay(
    image_bgr: np.ndarray,
    labels: np.ndarray,
    alpha: float = 0.4,
    contour: bool = True,
    ignored: bool = False,
) -> np.ndarray:
    """Labels over an image: body reddish, panel bluish, each with a thin contour.

    Args:
        image_bgr: uint8 [H, W, 3].
        labels: Class indices [H, W]; ignored pixels (255) are left as they are.
        alpha: Share of the colour inside a part, 0 to 1.
        contour: Whether to draw the outermost pixels of each part in its full colour.
        ignored: Whether to tint ignored pixels grey, which tells them from black sky.

    Returns:
        A new image uint8 [H, W, 3].

    Raises:
        ValueError: The sizes differ.
    """
    _same_size(image_bgr, labels)
    result = image_bgr.copy()
    for index, colour in PART_COLOURS.items():
        part = labels == index
        if not part.any():
            continue
        result[part] = _mix(image_bgr[part], colour, alpha)
        if contour:
            result[_rim(part)] = colour
    if ignored:
        outside = labels == IGNORE_INDEX
        result[outside] = _mix(image_bgr[outside], _IGNORED, 0.5)
    return result


def error_overlay(image_bgr: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where a prediction is wrong, over a dimmed grey image.

    `missed`: part of the craft taken for background; `false alarm`: background taken for craft;
    `wrong part`: body and panel confused. Colours are `ERROR_COLOURS`. Pixels whose truth is 255
    are never wrong.

    Args:
        image_bgr: uint8 [H, W, 3].
        labels: Predicted class indices [H, W].
        truth: True class indices [H, W].

    Raises:
        ValueError: The sizes differ.
    """
    _same_size(image_bgr, labels)
    _same_size(image_bgr, truth)
    grey = cv2.cvtColor(image_bgr, cv2.COLOR_BGR2GRAY)
    result = cv2.cvtColor(cv2.convertScaleAbs(grey, alpha=0.6), cv2.COLOR_GRAY2BGR)
    wrong = (labels != truth) & (truth != IGNORE_INDEX)
    result[wrong & (labels == 0)] = ERROR_COLOURS["missed"]
    result[wrong & (truth == 0)] = ERROR_COLOURS["false alarm"]
    result[wrong & (labels != 0) & (truth != 0)] = ERROR_COLOURS["wrong part"]
    return result


def _same_size(image: np.ndarray, labels: np.ndarray) -> None:
    if image.shape[:2] != labels.shape:
        raise ValueError(f"image {image.shape[:2]} and labels {labels.shape} differ in size")


def _mix(pixels: np.ndarray, colour: tuple[int, int, int], alpha: float) -> np.ndarray:
    mixed = pixels * (1 - alpha) + np.asarray(colour, np.float32) * alpha
    return np.rint(mixed).astype(np.uint8)


def _rim(part: np.ndarray) -> np.ndarray:
    """The outermost pixels of a bool mask; at the frame's border it goes on, so there is no rim."""
    mask = part.astype(np.uint8)
    inner = cv2.erode(mask, np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE)
    return part & (inner == 0)


def _fit(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The image scaled into (width, height), its proportions kept, on dark paper."""
    width, height = size
    scale = min(width / image.shape[1], height / image.shape[0])
    inner = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    method = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    small = image if inner == image.shape[1::-1] else cv2.resize(image, inner, interpolation=method)
    tile = np.full((height, width, 3), _PAPER, np.uint8)
    top, left = (height - inner[1]) // 2, (width - inner[0]) // 2
    tile[top : top + inner[1], left : left + inner[0]] = small
    return tile


def _write(
    canvas: np.ndarray, text: str, left: int, top: int, width: int, colour: tuple[int, int, int]
) -> None:
    """One line of text in a strip of `_LINE` pixels, shrunk and then cut to fit `width`."""
    # cv2's fonts hold ASCII only; anything else would be drawn as question marks.
    text = text.encode("ascii", "replace").decode()
    scale = 0.5
    while scale > 0.35 and cv2.getTextSize(text, _FONT, scale, 1)[0][0] > width:
        scale -= 0.05
    cut = text
    while cut and cv2.getTextSize(cut + "..", _FONT, scale, 1)[0][0] > width:
        cut = cut[:-1]
    shown = text if cv2.getTextSize(text, _FONT, scale, 1)[0][0] <= width else cut + ".."
    cv2.putText(canvas, shown, (left, top + 16), _FONT, scale, colour, 1, cv2.LINE_AA)


_LINE = 22


def contact_sheet(
    tiles: Sequence[np.ndarray],
    columns: int,
    tile_size: tuple[int, int] = (256, 256),
    captions: Sequence[str] | None = None,
    header: str | None = None,
    gap: int = 6,
) -> np.ndarray:
    """Images in a grid, row by row.

    Args:
        tiles: Images uint8 [H, W, 3], of any sizes.
        columns: Tiles in a row.
        tile_size: (width, height) in pixels each tile is fitted into.
        captions: One line below each tile; long ones are shrunk, then cut.
        header: One line above everything.
        gap: Pixels between tiles.

    Returns:
        The sheet, uint8 [H, W, 3].

    Raises:
        ValueError: No tile, no column, or another number of captions.
    """
    if not tiles or columns < 1:
        raise ValueError("a contact sheet needs a tile and a column")
    if captions is not None and len(captions) != len(tiles):
        raise ValueError(f"{len(tiles)} tiles but {len(captions)} captions")
    width, height = tile_size
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    step_x, step_y = width + gap, height + gap + (_LINE if captions is not None else 0)
    top = gap + (_LINE if header else 0)
    sheet = np.full((top + rows * step_y, gap + columns * step_x, 3), _PAPER, np.uint8)
    if header:
        _write(sheet, header, gap, gap // 2, sheet.shape[1] - 2 * gap, _INK)
    for index, tile in enumerate(tiles):
        y, x = top + index // columns * step_y, gap + index % columns * step_x
        sheet[y : y + height, x : x + width] = _fit(tile, tile_size)
        if captions is not None:
            _write(sheet, captions[index], x + 2, y + height, width - 4, _DIM)
    return sheet


class OverlayRow(NamedTuple):
    """One row of an overlay sheet; a plain tuple in this order does too.

    Attributes:
        caption: Below the image, for example the sample's id.
        image: uint8 BGR [H, W, 3].
        truth: Class indices [H, W], or None where there is none.
        prediction: Class indices [H, W], or None.
        note: Below the prediction, for example its IoU.
    """

    caption: str
    image: np.ndarray
    truth: np.ndarray | None = None
    prediction: np.ndarray | None = None
    note: str = ""


Rows = Sequence[OverlayRow | tuple[str, np.ndarray, np.ndarray | None, np.ndarray | None]]


def _painted(image: np.ndarray, labels: np.ndarray | None) -> np.ndarray | None:
    return None if labels is None else overlay(image, labels)


def overlay_sheet(
    rows: Rows,
    tile_size: tuple[int, int] = (384, 384),
    errors: bool = False,
    header: str | None = None,
) -> np.ndarray:
    """Rows of image | truth | prediction, and on request the errors.

    A column that no row has anything for is left out.

    Args:
        rows: What to show, at least one.
        tile_size: (width, height) of each picture.
        errors: Whether to add `error_overlay` where there is truth and prediction.
        header: The line above; None explains the colours.

    Returns:
        The sheet, uint8 BGR.
    """
    full = [OverlayRow(*row) for row in rows]
    with_truth = any(row.truth is not None for row in full)
    with_prediction = any(row.prediction is not None for row in full)
    with_errors = errors and with_truth and with_prediction
    tiles: list[np.ndarray] = []
    captions: list[str] = []
    for row in full:
        cells: list[tuple[str, np.ndarray | None]] = [(row.caption, row.image)]
        if with_truth:
            cells.append(("truth", _painted(row.image, row.truth)))
        if with_prediction:
            cells.append((f"prediction  {row.note}", _painted(row.image, row.prediction)))
        if with_errors:
            wrong = None
            if row.truth is not None and row.prediction is not None:
                wrong = error_overlay(row.image, row.prediction, row.truth)
            cells.append(("errors", wrong))
        blank = np.full_like(row.image, _PAPER)
        tiles += [blank if tile is None else tile for _, tile in cells]
        captions += ["" if tile is None else text.rstrip() for text, tile in cells]
    if header is None:
        header = "red: body, blue: panel"
        if with_errors:
            header += "; errors: orange missed, light blue false alarm, yellow wrong part"
    columns = 1 + with_truth + with_prediction + with_errors
    return contact_sheet(tiles, columns, tile_size, captions, header)


def save_overlay_sheet(
    path: str | os.PathLike[str],
    rows: Rows,
    tile_size: tuple[int, int] = (384, 384),
    errors: bool = False,
    header: str | None = None,
) -> None:
    """Writes `overlay_sheet(...)` as PNG in one step.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    save_png(path, overlay_sheet(rows, tile_size, errors, header))


def save_png(path: str | os.PathLike[str], image_bgr: np.ndarray) -> None:
    """Writes an image as PNG in one step, whatever the path's extension.

    Raises:
        UserError: The disk is full or the folder cannot be written.
    """
    done, data = cv2.imencode(".png", image_bgr)
    assert done, "OpenCV could not encode a PNG"
    write_bytes(path, data.tobytes(), sync=False)
