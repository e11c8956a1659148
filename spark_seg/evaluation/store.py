"""The counts of a split: put together from any number of parts, written to disk and read back."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from spark_seg.atomic import write_bytes
from spark_seg.errors import UserError, UserFileNotFoundError
from spark_seg.evaluation.counts import CLASS_COUNT
from spark_seg.evaluation.frame import DEFAULT_OPTIONS, CountOptions, shapes, stacked
from spark_seg.evaluation.npz import DAMAGED, open_npz, reason

_TEXTS = ("ids", "satellites", "backgrounds")
_PLURAL = {"size": "sizes"}
Row = tuple[str, str, np.ndarray | Mapping[str, Any]]


@dataclass(frozen=True)
class ImageCounts:
    """The counts of a split, one row per image, ordered by id. All int64.

    What was not measured is blank: sizes 0 where there are only confusions, calibration without a
    pixel where no logits were seen.

    Attributes:
        ids: Sample ids, str [N], for example `Soho/val/image_00001`.
        satellites: Names of the spacecraft, str [N]; empty where unknown.
        confusion: [N, 3, 3], rows truth, columns prediction, in pixels.
        backgrounds: Kind of background, str [N]; empty where unknown.
        sizes: [N, 2], height and width.
        boxes: [N, 2, 4], of the true and the predicted craft; see `boxes.py`.
        boundary_pixels: [N, 3, 2], parts body, panel, craft; true and predicted boundary pixels.
        boundary_matched: [N, 3, T, 2], those with one of the other side within `boundary_px[t]`.
        boundary_overlap: [N, 3, 2], intersection and union of boundary IoU's bands.
        calibration: [N, 3, bins, 3], regions all, foreground, predicted; pixels, right ones, sum of
            confidence in units of 2**-24.
        nll: [N, 3], per region the sum of -log p(truth) in units of 2**-24 nats.
        options: What was counted.
    """

    ids: np.ndarray
    satellites: np.ndarray
    confusion: np.ndarray
    backgrounds: np.ndarray = None  # type: ignore[assignment]  # filled in below
    sizes: np.ndarray = None  # type: ignore[assignment]
    boxes: np.ndarray = None  # type: ignore[assignment]
    boundary_pixels: np.ndarray = None  # type: ignore[assignment]
    boundary_matched: np.ndarray = None  # type: ignore[assignment]
    boundary_overlap: np.ndarray = None  # type: ignore[assignment]
    calibration: np.ndarray = None  # type: ignore[assignment]
    nll: np.ndarray = None  # type: ignore[assignment]
    options: CountOptions = DEFAULT_OPTIONS

    def __post_init__(self) -> None:
        count = len(self.ids)
        empty = stacked([{}] * count, self.options)
        for name in shapes(self.options):
            field = _PLURAL.get(name, name)
            if getattr(self, field) is None:
                object.__setattr__(self, field, empty[name])
        if self.backgrounds is None:
            object.__setattr__(self, "backgrounds", np.full(count, "", np.str_))

    @classmethod
    def collect(cls, rows: Iterable[Row], options: CountOptions = DEFAULT_OPTIONS) -> "ImageCounts":
        """Puts rows together, ordered by id whatever the order given.

        Args:
            rows: (id, satellite, counts), the counts a confusion matrix [3, 3] or what
                `frame.count_frame` returned, with `calibration`, `nll` and `background` where known.
            options: With which they were counted.
        """
        ordered = sorted(rows, key=lambda row: row[0])
        dicts = [
            dict(counts) if isinstance(counts, Mapping) else {"confusion": counts}
            for _, _, counts in ordered
        ]
        arrays = stacked(dicts, options)
        return cls(
            ids=_texts(row[0] for row in ordered),
            satellites=_texts(row[1] for row in ordered),
            backgrounds=_texts(counts.get("background", "") for counts in dicts),
            options=options,
            **{_PLURAL.get(name, name): array for name, array in arrays.items()},
        )

    @classmethod
    def merge(cls, parts: Sequence["ImageCounts"]) -> "ImageCounts":
        """Puts parts together that several processes or runs counted; ordered by id.

        An image that is in several parts with equal counts is kept once.

        Raises:
            UserError: Parts counted with different options, or one id with different counts.
        """
        if not parts:
            return cls.collect([])
        if any(part.options != parts[0].options for part in parts):
            raise UserError("counts made with different options cannot be put together")
        joined = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in cls.names()
        }
        ids, first, inverse = np.unique(joined["ids"], return_index=True, return_inverse=True)
        for name, array in joined.items():
            same = (array == array[first][inverse]).reshape(len(array), -1).all(1)
            if not same.all():
                raise UserError(
                    f"{joined['ids'][~same][0]} was counted twice with different {name}: "
                    "put runs of one model over different images together"
                )
        merged = {name: array[first] for name, array in joined.items()}
        assert (merged["ids"] == ids).all()
        return cls(**merged, options=parts[0].options)

    @classmethod
    def names(cls) -> list[str]:
        """The arrays' names, all with one row per image."""
        return [field.name for field in fields(cls) if field.name != "options"]

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: np.ndarray) -> "ImageCounts":
        """Some of the images: indices or bool [N]."""
        return replace(self, **{name: getattr(self, name)[which] for name in self.names()})

    def with_backgrounds(self, kinds: Mapping[str, str]) -> "ImageCounts":
        """The same with the background's kind by id; what is not in the mapping stays as it is."""
        found = [kinds.get(i, old) for i, old in zip(self.ids, self.backgrounds, strict=True)]
        return replace(self, backgrounds=_texts(found))

    @property
    def detailed(self) -> bool:
        """Whether boundaries and boxes were counted in every image."""
        return len(self) > 0 and bool((self.sizes > 0).all())

    @property
    def calibrated(self) -> bool:
        """Whether logits were seen for every image."""
        return len(self) > 0 and bool((self.calibration[:, 0, :, 0].sum(1) > 0).all())

    @property
    def true_area(self) -> np.ndarray:
        """True pixels of background, body and panel: int64 [N, 3]."""
        return self.confusion.sum(2)

    def save(self, path: str | Path) -> None:
        """Writes all arrays and the options as npz in one step; the folder must be there."""
        buffer = io.BytesIO()
        options = {
            "boundary_px": np.array(self.options.boundary_px, np.int64),
            "band_share": np.float64(self.options.band_share),
        }
        arrays = {name: getattr(self, name) for name in self.names()}
        np.savez_compressed(buffer, **arrays, **options)  # type: ignore[arg-type]
        write_bytes(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "ImageCounts":
        """Reads what `save` wrote.

        Raises:
            UserError: The file is missing or holds something else.
        """
        if not Path(path).is_file():
            raise UserFileNotFoundError(
                f"no counts file {path}: evaluate with an output folder first"
            )
        try:
            with open_npz(path) as file:
                first = [file[name] for name in ("ids", "satellites", "confusion")]
                count = len(first[0])
                shape = (count, CLASS_COUNT, CLASS_COUNT)
                if first[2].shape != shape or first[1].shape != shape[:1]:
                    raise UserError(
                        f"{path} is no file of counts (its shapes differ): evaluate again"
                    )
                arrays = {name: file[name] for name in cls.names()}
                options = CountOptions(
                    boundary_px=tuple(int(r) for r in file["boundary_px"]),
                    band_share=float(file["band_share"]),
                    bins=int(arrays["calibration"].shape[2]),
                )
        except (UserError, PermissionError):
            raise
        except DAMAGED as error:
            raise UserError(
                f"{path} is no file of counts ({reason(error)}): evaluate again"
            ) from error
        wanted = {_PLURAL.get(name, name): shape for name, shape in shapes(options).items()}
        for name, array in arrays.items():
            if array.shape != (count, *wanted.get(name, ())):
                raise UserError(f"{path} is no file of counts (its shapes differ): evaluate again")
            if array.dtype.kind != ("U" if name in _TEXTS else "i"):
                raise UserError(f"{path} is no file of counts ({name} is {array.dtype})")
        return cls(**arrays, options=options)


def _texts(values: Iterable[Any]) -> np.ndarray:
    return np.array([str(value) for value in values], dtype=np.str_)
