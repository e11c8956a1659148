"""Work done beside the main thread, a few jobs at most waiting, no error lost."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class Background:
    """Runs calls in threads; an error in one of them is raised by a later call of `run` or `wait`.

    Args:
        threads: How many; calls may overtake each other where there are several.
        waiting: How many calls may be unfinished. `run` then blocks, so that memory stays bounded.
    """

    def __init__(self, threads: int = 1, waiting: int = 8) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="background")
        self._waiting = waiting
        self._calls: deque[Future] = deque()

    def run(self, function: Callable[..., Any], *args: Any) -> None:
        """Hands a call over.

        Raises:
            Exception: What an earlier call raised; those that have not begun are dropped.
        """
        while self._calls and (self._calls[0].done() or len(self._calls) >= self._waiting):
            self._take()
        self._calls.append(self._pool.submit(function, *args))

    def wait(self) -> None:
        """Returns when all calls have ended.

        Raises:
            Exception: What one of them raised, as `run`.
        """
        while self._calls:
            self._take()

    def close(self) -> None:
        """Lets what was handed over end, whatever comes of it; for a way out that another error has opened."""
        self._pool.shutdown(wait=True)

    def _take(self) -> None:
        try:
            self._calls.popleft().result()
        except BaseException:
            while self._calls:
                self._calls.pop().cancel()
            raise
