"""The tensors of a checkpoint: each from the one file that may hold it, floats, all finite.

Only safetensors are read, since unpickling can run code. The headers are read and checked before
the first tensor is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from safetensors import safe_open
from torch import Tensor

from mosa.hub.bounded import faults_of
from mosa.inputs import is_file, opened, read_json, shortened
from mosa.types import UserError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

MOST_EPSILON = 1e-2
"""Of a norm's epsilon: published networks have at most 1e-5."""
ROPE_THETA = (1.0, 1e11)
"""Of the base of rotary frequencies: published networks have 1e4 to 5e10."""

FLOATING = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}


@dataclass(frozen=True)
class Weights:
    """The tensors of some files by name, not read yet: where each is, its shape and its type."""

    place: str
    """The folder or file, for messages."""
    file: Mapping[str, Path]
    shape: Mapping[str, torch.Size]
    stored: Mapping[str, str]
    """The type in words of safetensors, such as BF16."""

    @classmethod
    def of_folder(cls, folder: Path) -> Weights:
        """The tensors of a checkpoint's folder: of its single file, or of the files of its index.

        Raises UserError where there are none, or a file beside those of the index, where the index
        names a file outside of the folder, and where a tensor is in two files, or in another than
        the index says.
        """
        index = folder / INDEX
        weight_map = _weight_map(index) if is_file(index) else None
        if is_file(folder / SINGLE) and weight_map is None:
            return cls.of_files(folder, [folder / SINGLE])
        if weight_map is None:
            if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
                raise UserError(
                    f"{folder} holds pickled weights only, which mosa does not open because a "
                    "pickle can run code; convert them to safetensors."
                )
            raise UserError(f"{folder} has neither {SINGLE} nor {INDEX}; get the whole checkpoint.")
        names = set(weight_map.values())
        if is_file(folder / SINGLE) and names != {SINGLE}:
            raise UserError(
                f"{folder} has both {SINGLE} and {INDEX}, which names other files; remove what is "
                "left of another version."
            )
        files = [folder / name for name in sorted(names)]
        absent = [shortened(file.name) for file in files if not is_file(file)]
        if absent:
            raise UserError(
                f"{folder} lacks {listed(absent)}, named in its index; download the checkpoint "
                "again."
            )
        found = cls.of_files(folder, files)
        for name in found.file.keys() | weight_map.keys():
            says, has = weight_map.get(name), found.file.get(name)
            if has is None or says != has.name:
                raise UserError(
                    f"{index} has the tensor {shortened(name)} in {says or 'no file'}, but it is "
                    f"in {'none' if has is None else has.name}; download the checkpoint again."
                )
        return found

    @classmethod
    def of_files(cls, place: Path, files: Iterable[Path]) -> Weights:
        """The tensors of some files; UserError for one that is in two of them."""
        where: dict[str, Path] = {}
        shape: dict[str, torch.Size] = {}
        stored: dict[str, str] = {}
        for file in files:
            with _opened(file, "cpu") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (a file handle, no dict)
                    if name in where:
                        raise UserError(
                            f"The tensor {shortened(name)} is in {where[name]} and in {file}; "
                            "download the checkpoint again."
                        )
                    piece = tensors.get_slice(name)
                    where[name], stored[name] = file, piece.get_dtype()
                    shape[name] = torch.Size(piece.get_shape())
        return cls(str(place), where, shape, stored)

    def check_floats(self, *, leave_out: Collection[str] = ()) -> None:
        """UserError for a tensor that is stored as anything but floating-point numbers."""
        for name, kind in self.stored.items():
            if kind not in FLOATING and name not in leave_out:
                raise UserError(
                    f"The tensor {shortened(name)} of {self.place} is stored as {kind}; quantised "
                    "weights are not supported, use those in bfloat16 or float32."
                )

    def each(
        self,
        *,
        device: torch.device | str,
        dtype: torch.dtype | None = None,
        as_stored: Collection[str] = (),
        leave_out: Collection[str] = (),
        finite: bool = True,
    ) -> Iterator[tuple[str, Tensor]]:
        """Name and tensor, one after another: a copy on the device, in `dtype` or as it is stored.

        Those named in `as_stored` keep their type whatever `dtype` is. Raises UserError for a
        damaged file and, unless `finite` is false, for a tensor with numbers that are not finite.
        """
        for file in dict.fromkeys(self.file.values()):
            with _opened(file, str(device)) as tensors:
                for name in [n for n, place in self.file.items() if place == file]:
                    if name in leave_out:
                        continue
                    # A copy: on the CPU safetensors returns a view of the file, which would become
                    # invalid when the folder is overwritten.
                    wanted = None if name in as_stored else dtype
                    tensor = tensors.get_tensor(name).to(dtype=wanted, copy=True)
                    if finite and not is_finite(tensor):
                        narrow = tensor.dtype.itemsize < 4
                        raise UserError(
                            f"The tensor {shortened(name)} of {self.place} holds numbers that are "
                            f"not finite in {str(tensor.dtype).removeprefix('torch.')}; use other "
                            f"weights{', or float32' if narrow else ''}."
                        )
                    yield name, tensor


def _weight_map(index: Path) -> dict[str, str]:
    """Which file has each tensor; UserError for a name that is no file of the folder."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{index} has no weight_map; download the checkpoint again.")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(
                f"{index} names {shortened(file)}, which is no file of its folder; put the weights "
                "beside the index."
            )
    return weight_map


@contextmanager
def _opened(file: Path, device: str) -> Iterator[Any]:
    # safetensors says of a file that it may not read that there is none.
    with (
        opened(file),
        faults_of(str(file), "download it again"),
        safe_open(file, "pt", device=device) as tensors,
    ):
        yield tensors


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are finite."""
    # A sum takes one pass; only where it overflows or something is amiss does each number count.
    wide = torch.promote_types(tensor.dtype, torch.float32)
    return bool(tensor.sum(dtype=wide).isfinite()) or bool(tensor.isfinite().all())


def chooses_nothing(scores: Float[Tensor, "*rows V"]) -> Bool[Tensor, "*rows"]:
    """Where the scores of all V tokens are no numbers, infinite, or one and the same.

    Minus infinity marks tokens that never come, and is no fault beside finite ones.
    """
    # Both are NaN where one score is. `aminmax` takes ten times as long on a CPU.
    lowest, highest = scores.amin(dim=-1), scores.amax(dim=-1)
    return ~((lowest < highest) & (highest < torch.inf))


def listed(names: list[str], most: int = 3) -> str:
    """The first of some names, with how many more there are."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(shortened(name) for name in names[:most]) + rest
