"""Ways in processes of their own, one computing at a time: each runs as its own users run it.

In one process they share what is set for a whole process and for good, as this package's setting of the C library's
allocator (`spark_seg.datasets.memory`), and the threads of every runtime that is loaded.
"""

import gc
import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from spark_seg.benchmark.timing import Lane, OutOfMemory, is_out_of_memory
from spark_seg.errors import UserError


class Apart:
    """A process that makes and times calls.

    Args:
        make: Returns a call; a module's function, and all that is given to it, can be pickled.
        keep_memory: Whether the allocator keeps freed memory there, as in trainings and predictions of ours.
        threads: torch's; None leaves them.
    """

    def __init__(
        self, make: Callable[..., Callable[[], Any]], keep_memory: bool, threads: int | None = None
    ) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        given = (there, make, keep_memory, threads)
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        there.close()

    def lane(self, name: str, *given: Any) -> Lane:
        """The call that `make(name, *given)` returns there; made when it is first called.

        Its methods raise as `ask`.
        """
        return _LaneApart(self, name, given)

    def forget(self) -> None:
        """Drops all calls and what they hold; raises as `ask`."""
        self.ask("forget")

    def ask(self, *what: Any) -> Any:
        """What the process answers.

        Raises:
            UserError: What the call, or its making, raised there.
            OutOfMemory: The system ended the process, as it does where memory does not suffice.
            RuntimeError: What else went wrong there, and how the process ended.
        """
        try:
            self._here.send(what)
            kind, answer = self._here.recv()
        except (EOFError, ConnectionError):
            self._process.join(10)
            code = self._process.exitcode
            if code == -signal.SIGKILL:
                raise OutOfMemory("out of memory: the system ended its process") from None
            raise RuntimeError(f"the process of a way ended by itself, exit code {code}") from None
        if kind == "error":
            raise answer
        return answer

    def ended(self) -> bool:
        """Whether there is no process any more."""
        return not self._process.is_alive()

    def close(self) -> None:
        """Ends the process."""
        self._here.close()
        self._process.join(10)
        self._process.kill()


class _LaneApart(Lane):
    def __init__(self, process: Apart, name: str, given: tuple[Any, ...]) -> None:
        super().__init__(lambda: self._ask("warm"))
        self._process, self._name, self._given, self._made = process, name, given, False

    def _ask(self, verb: str) -> Any:
        if not self._made:
            self._process.ask("make", self._name, self._given)
            self._made = True
        return self._process.ask(verb, self._name)

    def peak(self) -> float:
        return self._ask("peak")

    def time(self) -> tuple[float, float]:
        return self._ask("time")


class Ways:
    """Makes what competes: each way in its own process, or all in this one; a context manager, which ends those.

    Args:
        make: `make(way, *given)` returns a call; as `Apart` wants it.
        apart: Whether each has its own process. A way's name may hold a space: those of one first word share theirs.
        foreign: First words of ways whose users know nothing of this package: their memory is left alone.
        threads: torch's, everywhere; None leaves them.
    """

    def __init__(
        self,
        make: Callable[..., Callable[[], Any]],
        apart: bool,
        foreign: Iterable[str],
        threads: int | None,
    ) -> None:
        self._make, self._apart, self._foreign = make, apart, tuple(foreign)
        self._threads = threads
        self._processes: dict[str, Apart] = {}

    def __enter__(self) -> "Ways":
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes.values():
            process.close()

    def calls(self, ways: Iterable[str], *given: Any) -> dict[str, Callable[[], Any] | Lane]:
        """What `timing.race` takes, by way; drops those of the time before.

        Raises:
            RuntimeError: As `Apart.ask`. What `make` raises comes with a way's first call, in either case.
        """
        if not self._apart:
            _free()  # what those of the time before held
            return {way: _made_late(self._make, way, *given) for way in ways}
        for name, process in list(self._processes.items()):
            if process.ended():  # the system takes one's process where its memory does not suffice
                del self._processes[name]
            else:
                process.forget()
        return {way: self._process(way.split()[0]).lane(way, *given) for way in ways}

    def _process(self, name: str) -> Apart:
        if name not in self._processes:
            keep = name not in self._foreign
            self._processes[name] = Apart(self._make, keep, self._threads)
        return self._processes[name]


def _made_late(make: Callable[..., Callable[[], Any]], *given: Any) -> Callable[[], Any]:
    """Makes a call when it is first called, where a race leaves out what does not fit the memory."""
    made: list[Callable[[], Any]] = []

    def call() -> Any:
        if not made:
            made.append(make(*given))
        return made[0]()

    return call


def _free() -> None:
    import torch

    gc.collect()  # models hold themselves in circles
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _serve(there: Any, make: Callable[..., Any], keep_memory: bool, threads: int | None) -> None:
    # Ctrl-C reaches the benchmark too, which ends this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    import torch

    from spark_seg.datasets.memory import reuse_memory

    if keep_memory:
        reuse_memory()
    if threads:
        torch.set_num_threads(threads)
    lanes: dict[str, Lane] = {}
    while True:
        try:
            verb, *rest = there.recv()
        except EOFError:
            return
        try:
            there.send(("answer", _do(lanes, make, verb, *rest)))
        except (UserError, RuntimeError, MemoryError) as error:
            kind = UserError if isinstance(error, UserError) else RuntimeError  # those can be sent
            there.send(
                ("error", OutOfMemory(str(error)) if is_out_of_memory(error) else kind(str(error)))
            )
        except Exception:
            there.send(("error", RuntimeError(traceback.format_exc())))


def _do(lanes: dict[str, Lane], make: Callable[..., Any], verb: str, *rest: Any) -> Any:
    if verb == "make":
        name, given = rest
        lanes[name] = Lane(make(name, *given))
    elif verb == "forget":
        lanes.clear()
        _free()
    elif verb == "warm":
        lanes[rest[0]].warm()
    else:
        return getattr(lanes[rest[0]], verb)()
    return None
