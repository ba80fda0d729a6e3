"""Conformance: every family file is in the table, cited, and in the docs."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from refusals import refuses
from tiny_models import VARIANTS

import mosa.families
from mosa.families import FAMILIES, Family

SHARED = {"attention", "base", "by_block", "chat", "checkpoint", "noise", "packed", "rotary"}
SHARED |= {"walk"}
"""Modules of the folder that hold no family."""
ROOT = Path(__file__).parents[2]


def family_modules() -> list[str]:
    return sorted({m.name for m in pkgutil.iter_modules(mosa.families.__path__)} - SHARED)


def test_every_family_file_has_its_line_in_the_table():
    assert sorted(FAMILIES) == family_modules()
    for name in family_modules():
        module = importlib.import_module(f"mosa.families.{name}")
        own = [value for value in vars(module).values() if isinstance(value, Family)]
        assert own == [FAMILIES[name]]


def test_model_types_are_claimed_once():
    """Together with the name of the architecture, where a family has one."""
    claimed = [(t, f.architecture) for f in FAMILIES.values() for t in f.model_types]
    assert len(claimed) == len(set(claimed))


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_cites_its_paper_and_is_documented(name):
    family = FAMILIES[name]
    source = importlib.import_module(f"mosa.families.{name}").__doc__ or ""
    assert re.search(r"arXiv:\d{4}\.\d{5}", source)
    page = (ROOT / "docs" / "families.md").read_text(encoding="utf-8")
    assert family.name in page
    for model_type in family.model_types:
        assert f"`{model_type}`" in page


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_is_whole(name):
    family = FAMILIES[name]
    assert not set(family.only_values) & set(family.default_fields)
    assert not set(family.required_fields) & {*family.only_values, *family.default_fields}
    for token in (*family.template_tokens, family.generation_header):
        assert token in family.chat_template.replace("' + message['role'] + '", "assistant")
    with refuses(family.name, "config.json"):
        family.complete_config({"model_type": family.model_types[0]})


def test_every_family_has_tiny_configs_that_other_tests_build():
    """For each `model_type` that it claims."""
    for name, family in FAMILIES.items():
        assert {config["model_type"] for config in VARIANTS[name]} == set(family.model_types)


def test_family_names_stay_in_their_folder():
    """To the rest of mosa there is one kind of model."""
    words = re.compile("|".join(family.name for family in FAMILIES.values()), re.IGNORECASE)
    source = ROOT / "src" / "mosa" / "families"
    for name in SHARED:
        text = (source / f"{name}.py").read_text(encoding="utf-8")
        assert not words.search(text), f"families/{name}.py names a family"


def test_the_end_of_text_comes_first(tiny_llada, tiny_dream):
    for model in (tiny_llada, tiny_dream):
        assert model.end_token_ids[0] == model.eos_token_id and len(model.end_token_ids) == 2


def test_only_the_shifted_family_reads_one_to_the_left(tiny_llada, tiny_dream):
    """Position p of a shifted family is what the network says at p - 1."""
    ids = torch.tensor([[5, 9, 200, 17]])
    with torch.no_grad():
        raw = tiny_dream.network(input_ids=ids).logits
        assert torch.equal(tiny_dream.logits(ids)[:, 1:], raw[:, :-1])
        assert torch.equal(tiny_dream.logits(ids)[:, 0], raw[:, 0])
        assert torch.equal(tiny_llada.logits(ids), tiny_llada.network(input_ids=ids).logits)
