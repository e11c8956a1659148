"""Ending a training from outside: Ctrl-C, Slurm's warning before the time limit, a requeue."""

import logging
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

import torch

from spark_seg.engine.launch import GO_ON

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal and its state saved; the message names the checkpoint.

    Attributes:
        code: The process's exit code: 130 after Ctrl-C, else `GO_ON`.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class StopRequest:
    """Remembers a signal until the step is finished, and lets all processes agree on it.

    Args:
        logger: Told when a signal comes.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self.number = 0
        self._group: torch.distributed.ProcessGroup | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the signals within the block; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {number: signal.signal(number, self._remember) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.number == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        self.logger.warning(
            f"{signal.Signals(number).name}: finishing this step, saving, then ending{again}"
        )

    def agreed(self) -> int:
        """The signal that any process got, or 0; the same answer on all of them.

        The few bytes go over gloo on the CPU, so no GPU is waited for.
        """
        if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
            return self.number
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        flag = torch.tensor([self.number])
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX, group=self._group)
        return int(flag)

    def leave(self, number: int, where: str) -> NoReturn:
        """Ends the training. After SIGTERM and SIGUSR1 the exit code asks the Slurm script to queue the job again.

        Raises:
            TrainingInterrupted: Always.
        """
        if torch.distributed.is_initialized():
            torch.distributed.barrier()  # srun ends all tasks when the first one leaves
        code = 128 + number if number == signal.SIGINT else GO_ON
        raise TrainingInterrupted(f"interrupted at {where}", code)
