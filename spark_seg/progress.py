"""Progress of long work: a bar on a terminal, plain lines elsewhere (logs, Slurm, CI)."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from spark_seg.engine.launch import this_process

T = TypeVar("T")


def clock(seconds: float) -> str:
    """Seconds as `h:mm:ss` or `m:ss`."""
    minutes, secs = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class Progress:
    """Counts finished items and shows rate and time left on stderr.

    On a terminal it is a tqdm bar; elsewhere one line every `every` seconds and one at the end. Of the processes of a
    run, the main one alone shows it.

    Args:
        total: How many items there are.
        name: What is going on, for example `evaluate`.
        unit: What is counted, for example `img`.
        every: Seconds between lines where there is no terminal.
        done: Items finished by an earlier run; they count as done, not for the rate.
    """

    def __init__(
        self, total: int, name: str, unit: str = "img", every: float = 15.0, done: int = 0
    ) -> None:
        self.total, self.name, self.unit, self.every = total, name, unit, every
        self.count = done
        self._first = done
        self._start = self._last = time.monotonic()
        self._shown = -1
        self._bar = None
        self._shows = this_process().is_main
        if self._shows and sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=total, initial=done, desc=name, unit=unit, dynamic_ncols=True, leave=True
            )

    def update(self, n: int = 1) -> None:
        """Counts `n` more items as finished."""
        self.count += n
        if self._bar is not None:
            self._bar.update(n)
        elif self._shows and time.monotonic() - self._last >= self.every:
            self._line()

    def note(self, text: str) -> None:
        """Shows a few words beside the bar; nothing where there is none."""
        if self._bar is not None:
            self._bar.set_postfix_str(text)

    def close(self) -> None:
        """Ends the display; without a terminal it prints the closing line."""
        if self._bar is not None:
            self._bar.close()
        elif self._shows and self._shown != self.count:
            self._line()

    def _line(self) -> None:
        self._shown = self.count
        now = self._last = time.monotonic()
        spent = max(now - self._start, 1e-9)
        rate = (self.count - self._first) / spent
        left = clock((self.total - self.count) / rate) if rate > 0 else "?"
        state = f"in {clock(spent)}" if self.count >= self.total else f"{left} left"
        print(
            f"{self.name}: {self.count}/{self.total} {self.unit}, {rate:.1f} {self.unit}/s, {state}",
            file=sys.stderr,
            flush=True,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def track(items: Iterable[T], total: int, name: str, unit: str = "img") -> Iterator[T]:
    """Yields the items and shows how far the work is."""
    with Progress(total, name, unit) as bar:
        for item in items:
            yield item
            bar.update()
