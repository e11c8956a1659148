"""Ending a training from outside: Ctrl-C, Slurm's warning before the time limit, a requeue."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch

from spark_seg.engine.launch import GO_ON, is_first, this_process

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
# What Slurm sends to tasks that are on their way out already.
_LATE = (signal.SIGTERM, signal.SIGUSR1)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal and its state saved; the message names the checkpoint.

    Attributes:
        code: The process's exit code: 130 after Ctrl-C, else `GO_ON`.
        quiet: Whether another process tells it.
        at_once: Whether the process should end without taking itself apart, which can take seconds: a task of Slurm
            among others, of which those that are left are killed soon after the first one has ended.
    """

    def __init__(self, message: str, code: int, quiet: bool = False, at_once: bool = False) -> None:
        super().__init__(message)
        self.code, self.quiet, self.at_once = code, quiet, at_once


class StopRequest:
    """Remembers a signal until the step is finished, and lets all processes agree on it.

    Args:
        logger: Told when a signal comes.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.number = 0
        self._leaving = False
        self._group: torch.distributed.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block signals may be caught, from `begin` on; then the former handlers are back.

        Of a training that leaves, as one of several tasks of Slurm, the rest of the process hears no SIGTERM and no
        SIGUSR1: srun ends all tasks when the first one has left, and a task that this kills would hide the exit code
        that asks for another start.
        """
        former = {number: signal.getsignal(number) for number in SIGNALS}
        try:
            yield
        finally:
            deaf = self._leaving and _one_of_many_tasks()
            if threading.current_thread() is threading.main_thread():
                for number, handler in former.items():
                    signal.signal(number, signal.SIG_IGN if deaf and number in _LATE else handler)

    def begin(self) -> None:
        """Catches the signals from now on, where this is the main thread: there is a training that can be saved.

        Not before: while processes still meet in new groups, one whose peer has died would wait for it and end on no
        signal. After this no group is made, and gloo's notice a death at once (on NCCL's the launcher's SIGKILL ends
        those that wait).
        """
        if torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1:
            self._group = torch.distributed.new_group(backend="gloo")
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                signal.signal(number, self._remember)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        if self._leaving:
            return
        self.number = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        self.logger.warning(
            f"{signal.Signals(number).name}: finishing this step, saving, then ending{again}"
        )

    def agreed(self) -> int:
        """The signal that any process got, or 0; the same answer on all of them.

        The few bytes go over gloo on the CPU, so no GPU is waited for.
        """
        if self._group is None:
            return self.number
        flag = torch.tensor([self.number])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(flag)

    def leave(self, number: int, where: str) -> NoReturn:
        """Ends the training. After SIGTERM and SIGUSR1 the exit code asks the Slurm script to queue the job again.

        Raises:
            TrainingInterrupted: Always.
        """
        self._leaving = True
        code = 128 + number if number == signal.SIGINT else GO_ON
        raise TrainingInterrupted(
            f"interrupted at {where}", code, quiet=not is_first(), at_once=_one_of_many_tasks()
        )

    def wait_for_all(self) -> None:
        """Where the training leaves, waits for all processes: the last thing to do before the process ends.

        When one task has left, srun gives the others no more than Slurm's KillWait.
        """
        if self._leaving and torch.distributed.is_initialized():
            torch.distributed.barrier()


def _one_of_many_tasks() -> bool:
    process = this_process()
    return process.launcher == "slurm" and process.world_size > 1
