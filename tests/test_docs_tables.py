"""The tables of docs/ are those that docs/tables.py writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def generator() -> ModuleType:
    """docs/tables.py, which is in no package."""
    spec = importlib.util.spec_from_file_location("docs_tables", DOCS / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TABLES = generator()


@pytest.mark.parametrize(
    ("page", "table"),
    [pytest.param(p, t, id=str(p.relative_to(DOCS))) for p, t in TABLES.tables()],
)
def test_the_table_of_the_page_is_that_of_the_program(page, table):
    text = page.read_text(encoding="utf-8")
    assert text.count(table[0]) == 1
    assert TABLES.with_table(text, table) == text, "write it with `make docs-tables`"


def test_a_table_is_replaced_where_it_is():
    old = "# a\n\n| x | y |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |\n\n| other |\n"
    table = TABLES.markdown(("x", "y"), [("5", "6")])
    assert table == ["| x | y |", "|---|---|", "| 5 | 6 |"]
    assert TABLES.with_table(old, table) == "# a\n\n| x | y |\n|---|---|\n| 5 | 6 |\n\n| other |\n"
    with pytest.raises(ValueError):
        TABLES.with_table("# no table\n", table)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "unset"),
        (True, "yes"),
        (0, "0"),
        (2048, "2048"),
        (10_000, "10,000"),
        (1.0, "1.0"),
        ("random", "`random`"),
        ((1, 40), "1, 40"),
        (("a b", "c"), "`a b`, `c`"),
    ],
)
def test_a_setting_as_people_write_it(value, text):
    assert TABLES.shown(value) == text
