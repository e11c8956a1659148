"""Names and contents of a demo tree's files, from what is known of each frame.

A row is what `tree.write_chunk` returns for a frame: `split`, `index`, `satellite`, `box`, `names` (paths of image and
mask), `background`, and the shares `body`, `panel`, `box_area` of the frame.
"""

import csv
import io
from pathlib import Path
from typing import Any

from spark_seg.datasets.layout import SATELLITES

Row = dict[str, Any]


def names(split: str, index: int, satellite: str) -> tuple[str, str]:
    """Paths of image and mask in the tree. Numbers start again with every satellite."""
    if split == "test":
        stem = f"test_{index:05d}"
        return f"stream-1-test/{stem}_img.jpg", f"stream-1-test-truth/{stem}_layer.png"
    stem = f"image_{index // len(SATELLITES) + 1:05d}"
    place = f"{satellite}/{split}/{stem}"
    return f"images/{place}_img.jpg", f"mask/{place}_layer.jpg"


def write_frame(
    folder: Path, names: tuple[str, str], image: Any, labels: Any, lossless: bool
) -> None:
    import cv2

    from spark_seg.labels import colorize

    jpeg = [cv2.IMWRITE_JPEG_QUALITY, 95]
    jpeg += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    colours = colorize(labels)[..., ::-1]  # OpenCV writes blue first
    mask = cv2.imencode(".png", colours) if lossless else cv2.imencode(".jpg", colours, jpeg)
    for name, (_, data) in zip(names, (cv2.imencode(".jpg", image, jpeg), mask), strict=True):
        (folder / name).write_bytes(data.tobytes())


def write_csv(path: Path, rows: list[Row]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Image name", "Mask name", "Class", "Bounding box"])
    for row in rows:
        image, mask = (Path(name).name for name in row["names"])
        writer.writerow([image, mask, row["satellite"], str(tuple(row["box"]))])
    path.write_text(text.getvalue(), encoding="utf-8")


def write_backgrounds(path: Path, rows: list[Row]) -> None:
    """The background of each image under the id that the data set gives it."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "background"])
    for row in rows:
        image = row["names"][0].removesuffix("_img.jpg")
        writer.writerow([image.split("/", 1)[1], row["background"]])
    path.write_text(text.getvalue(), encoding="utf-8")


def measure(rows: dict[str, list[Row]]) -> dict[str, float]:
    """Shares of pixels, frames and boxes over all splits, rounded to 5 digits."""
    every = [row for split in ("train", "val", "test") for row in rows[split]]
    areas = sorted(row["box_area"] for row in every)
    n = len(every)
    body, panel = (sum(row[key] for row in every) / n for key in ("body", "panel"))
    found = {
        "background": 1 - body - panel,
        "body": body,
        "panel": panel,
        "frames_without_panel": sum(row["panel"] == 0 for row in every) / n,
        "box_mean": sum(areas) / n,
        "box_median": areas[n // 2],
        "box_5th_percentile": areas[int(0.05 * n)],
        "box_least": areas[0],
        "box_most": areas[-1],
    }
    return {key: round(value, 5) for key, value in found.items()}
