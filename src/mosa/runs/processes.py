"""The processes of one launch by `accelerate launch` or `torchrun`, and how they agree.

Every process loads every subject on its own device. The main one (index 0) runs the attacks and
writes the run; the others answer its queries (pool.py). This module has what they exchange before
and after: a few words over gloo, and none of their tensors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, final

from mosa.types import UserError

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=2)
"""How long a process that has done its share waits for the others."""
EXIT_USER_ERROR = 2
"""The exit status of a process that ends in a UserError."""


@final
@dataclass(frozen=True)
class Processes:
    """The processes of one launch, as one of them sees them."""

    index: int = 0
    """This one's number, from 0, over all machines."""
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's file and prints for the user."""
        return self.index == 0

    def gather(self, value: T) -> list[T]:
        """What every process gives, by their index; each waits for all others.

        Raises UserError where one of them has ended.
        """
        if self.count == 1:
            return [value]
        import torch.distributed

        found: list[Any] = [None] * self.count
        try:
            torch.distributed.all_gather_object(found, value)
        except RuntimeError as error:
            raise UserError(
                "another process of this launch ended before its work was done, and its own "
                "message says why; the records are kept, and the same command resumes"
            ) from error
        return found

    def agree(self, work: Callable[[], T]) -> T:
        """What the work returns, once it is done on every process.

        Where it ends in a UserError on any of them, all processes end: the main one raises the
        first of these errors, which names its process unless it is the main one.
        """
        result: list[T] = []
        own: UserError | None = None
        try:
            result.append(work())
        except UserError as error:
            own = error
        reasons = self.gather("" if own is None else str(own))
        for index, reason in enumerate(reasons):
            if reason and not self.is_main:
                self._leave()
            if reason and index == 0 and own is not None:
                raise own
            if reason:
                raise UserError(f"process {index}: {reason}")
        return result[0]

    def _leave(self) -> None:
        """End this process once the main one has: a launcher ends all others when one ends badly,
        and the main one must print first."""
        import torch.distributed

        with suppress(RuntimeError):  # which the end of the main process causes
            torch.distributed.barrier()
        raise SystemExit(EXIT_USER_ERROR)

    def disband(self) -> None:
        """Close the connection between the processes; the last thing that they do together."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


ALONE = Processes()


def launched() -> Processes:
    """The processes of this launch, read from the environment.

    Raises UserError where it speaks of several and no launcher has made them.
    """
    count, index = _number("WORLD_SIZE", 1), _number("RANK", 0)
    if count <= 1:
        return ALONE
    missing = [name for name in ("RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing or index >= count:
        wrong = f"without {' and '.join(missing)}" if missing else f"and RANK {index}"
        raise UserError(
            f"WORLD_SIZE is {count} {wrong}, as no launcher sets them; start several processes "
            "with `accelerate launch` or `torchrun`, or unset WORLD_SIZE for one"
        )
    return Processes(index, count)


def _number(variable: str, default: int) -> int:
    """A variable's whole number from 0 on; UserError for anything else."""
    text = os.environ.get(variable, "").strip() or str(default)
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise UserError(f"{variable} is no whole number from 0 on ({text[:50]!r}); unset it")
    return int(text)


def use_cpu_without_gpu() -> None:
    """Tell accelerate that this launch's processes are on the CPU, if there is no other device.

    `accelerate launch --cpu` starts a single process, and `--multi_gpu` starts several and does
    not say where they are; each would then assume that it is the only one.
    """
    import torch

    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def join() -> Processes:
    """The processes of this launch, connected.

    Over gloo on all devices: they exchange a few words, and none of their tensors.
    """
    processes = launched()
    if processes.count > 1:
        import torch.distributed

        torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return processes
