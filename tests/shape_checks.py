"""`--jaxtyping-packages` without what declares no shape: imported before mosa is.

jaxtyping wraps every function of a package, also those within functions each time one is made,
which takes milliseconds. Importing the package then took three times as long, and loops that make
functions a third more; of seven functions, one declares a shape.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any

import jaxtyping

KINDS = ("Bool", "Float", "Int", "Num")
"""The names of jaxtyping that the package declares shapes with."""
SHAPE = re.compile(rf"\b({'|'.join(KINDS)})\[")
_jaxtyped = jaxtyping.jaxtyped


def declares_shapes(thing: Any) -> bool:
    """Whether an argument or the result of a function has a shape, or a field of a dataclass."""
    if not inspect.isclass(thing):
        declared = list(thing.__annotations__.values())
    elif dataclasses.is_dataclass(thing):
        declared = [field.type for field in dataclasses.fields(thing)]
    else:
        return False
    return any(SHAPE.search(str(annotation)) for annotation in declared)


def jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    """The decorator that the import hook puts on everything."""
    checked = _jaxtyped(typechecker=typechecker)
    return lambda thing: checked(thing) if declares_shapes(thing) else thing


jaxtyping.jaxtyped = jaxtyped  # type: ignore[assignment]
