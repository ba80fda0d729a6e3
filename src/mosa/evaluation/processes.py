"""One campaign on several processes of `accelerate launch` or `torchrun`.

Every process holds the whole model on its own device and runs a share of the tasks. The main one
(index 0) alone opens the run's file; each other one records into a part of its own beside it:

    OUT/run.sqlite              written by the main process alone
    OUT/parts/base.sqlite       the answers on record when a model's work began, for all to read
    OUT/parts/1/run.sqlite      written by process 1 alone, merged and removed by the main process

So no file has two writers, and machines need nothing in common but a folder. A part that a killed
run leaves behind is merged by whoever starts the run next, with as many processes as there are.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, final

from mosa.types import UserError

if TYPE_CHECKING:
    from mosa.evaluation.store import Store, Task

T = TypeVar("T")

LONGEST_WAIT = timedelta(days=2)
"""How long a process that has done its share waits for the others."""
EXIT_USER_ERROR = 2
"""The status of a process that a mistake of the user ends."""


@final
@dataclass(frozen=True)
class Processes:
    """The processes of one launch, as one of them sees them."""

    index: int = 0
    """This one's number, from 0, over all machines."""
    count: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes the run's file and speaks to the user."""
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
                "another process of this launch has ended before its work was done, and its own "
                "message says why; what was recorded is kept, and the same command goes on"
            ) from error
        return found

    def agree(self, work: Callable[[], T]) -> T:
        """What the work returns, once it is done on every process.

        Where it ends in a UserError on any of them, all processes end: the main one raises the
        first of these errors, which says whose it is unless it is the main one's own.
        """
        result: list[T] = []
        reason = ""
        try:
            result.append(work())
        except UserError as error:
            reason = str(error)
        reasons = self.gather(reason)
        for index, reason in enumerate(reasons):
            if reason and not self.is_main:
                self._leave()
            if reason:
                raise UserError(reason if index == 0 else f"process {index}: {reason}")
        return result[0]

    def _leave(self) -> None:
        """End this process once the main one has: a launcher ends all others when one ends badly,
        and the main one has something to say first."""
        import torch.distributed

        with suppress(RuntimeError):  # which the main process's end brings about
            torch.distributed.barrier()
        raise SystemExit(EXIT_USER_ERROR)

    def disband(self) -> None:
        """Let every process go its own way; the last thing that they do together."""
        if self.count > 1:
            import torch.distributed

            torch.distributed.destroy_process_group()


def launched() -> Processes:
    """The processes that a launcher has started this one among, by its environment."""
    count = int(os.environ.get("WORLD_SIZE", "1"))
    return Processes(int(os.environ.get("RANK", "0")), count) if count > 1 else Processes()


def use_cpu_without_gpu() -> None:
    """Tell accelerate that this launch's processes are on the CPU, if there is no other device.

    `accelerate launch --cpu` starts a single process, and `--multi_gpu` starts several and says no
    word of where they are; each would then take itself for the only one.
    """
    import torch

    if not torch.accelerator.is_available():
        os.environ["ACCELERATE_USE_CPU"] = "true"


def join() -> Processes:
    """The processes of this launch, connected.

    Over gloo whatever the devices are: they exchange a few words, and none of their tensors.
    """
    processes = launched()
    if processes.count > 1:
        import torch.distributed

        torch.distributed.init_process_group("gloo", timeout=LONGEST_WAIT)
    return processes


def shares(tasks: Sequence[Task], count: int) -> list[list[Task]]:
    """The tasks of each of so many processes, in their order.

    Each process gets as many tasks of each attack as any other, give or take one, and as many in
    all; where that leaves a choice, behaviors are spread as well.
    """
    found: list[list[Task]] = [[] for _ in range(count)]
    by_attack: list[Counter[tuple[str, str]]] = [Counter() for _ in range(count)]
    by_behavior: list[Counter[str]] = [Counter() for _ in range(count)]
    for task in tasks:
        attack = task.attack, task.preset
        index = min(
            range(count),
            key=lambda i: (by_attack[i][attack], len(found[i]), by_behavior[i][task.behavior], i),
        )
        found[index].append(task)
        by_attack[index][attack] += 1
        by_behavior[index][task.behavior] += 1
    return found


# --- parts ----------------------------------------------------------------------------------------


def base_file(out: Path) -> Path:
    """The answers on record that all processes read."""
    return out / "parts" / "base.sqlite"


def part_folder(out: Path, index: int) -> Path:
    """Where the process of this index, which is not the main one, records what it does."""
    return out / "parts" / str(index)


def parts_of(out: Path) -> list[Path]:
    """The parts of a run that are not merged yet."""
    return sorted(path for path in (out / "parts").glob("*") if path.is_dir())


def merge_parts(store: Store) -> None:
    """Take the parts of other processes into the run and remove them.

    Raises UserError where a process is still writing to one.
    """
    for part in parts_of(store.folder):
        store.merge(part)
        shutil.rmtree(part)
    shutil.rmtree(store.folder / "parts", ignore_errors=True)
