"""Decoding rules: one file a rule (or a few lines), one line in this table.

Most orders are chosen by the setting `remasking`, guidance by `cfg_scale`, all else by name and
options in the setting `rules`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, get_type_hints

from mosa.denoising.rules.anchor_first import AnchorFirst
from mosa.denoising.rules.base import (
    Action,
    Guidance,
    Monitor,
    Order,
    Proposals,
    RowView,
    Rule,
    Stages,
)
from mosa.denoising.rules.classifier_free import ClassifierFree
from mosa.denoising.rules.linear_probe import LinearProbe
from mosa.denoising.rules.orders import (
    AtRandom,
    Entropy,
    LeftToRight,
    LowConfidence,
    MaskGitPlus,
    Origin,
    RightToLeft,
    TopkMargin,
)
from mosa.denoising.rules.remask_below import RemaskBelow
from mosa.denoising.rules.renoise import Renoise
from mosa.denoising.rules.stochastic_annealing import StochasticAnnealing
from mosa.inputs import checked
from mosa.types import UserError

RULES: dict[str, type[Rule]] = {
    "low_confidence": LowConfidence,
    "random": AtRandom,
    "maskgit_plus": MaskGitPlus,
    "topk_margin": TopkMargin,
    "entropy": Entropy,
    "origin": Origin,
    "left_to_right": LeftToRight,
    "right_to_left": RightToLeft,
    "stochastic_annealing": StochasticAnnealing,
    "anchor_first": AnchorFirst,
    "classifier_free": ClassifierFree,
    "remask_below": RemaskBelow,
    "linear_probe": LinearProbe,
    "renoise": Renoise,
}
"""Every rule by its name."""


ORDERS: dict[str, type[Order]] = {
    name: rule
    for name, rule in RULES.items()
    if issubclass(rule, Order) and rule.chosen_by == "remasking"
}
"""The orders without options, which the setting `remasking` chooses."""


def rule_from_dict(record: Mapping[str, Any]) -> Rule:
    """The rule of a name and its options; UserError where one is unknown, missing or wrong."""
    options = dict(record)
    name = options.pop("name", None)
    if name not in RULES:
        raise UserError(f"There is no rule {name!r}; the rules are {', '.join(RULES)}.")
    fields = [field for field in dataclasses.fields(RULES[name]) if field.init]
    known = [field.name for field in fields]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise UserError(
            f"The rule {name} has no option {unknown[0]!r}; "
            + (f"its options are {', '.join(known)}." if known else "it has none.")
        )
    missing = [
        field.name
        for field in fields
        if field.default is dataclasses.MISSING and field.name not in options
    ]
    if missing:
        raise UserError(f"The rule {name} needs the option {missing[0]!r}.")
    kinds = get_type_hints(RULES[name])
    # 1 and 1.0 are one number, and one hash.
    return RULES[name](**{o: checked(v, kinds[o], f"{o} of {name}") for o, v in options.items()})


__all__ = [
    "ORDERS",
    "RULES",
    "Action",
    "Guidance",
    "Monitor",
    "Order",
    "Proposals",
    "Renoise",
    "RowView",
    "Rule",
    "Stages",
    "rule_from_dict",
]
