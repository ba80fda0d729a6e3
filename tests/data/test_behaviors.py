"""Behaviors of every layout, on harmless rows; the search by hash; the sentences for mistakes.

The published files do not travel with the repository. Where MOSA_DATA names a folder that holds
them, the last part reads them too.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from refusals import refuses

from mosa.data import KNOWN_FILES, hash_of_cases, known_set_names, load_cases, load_prompts
from mosa.inputs import sha256
from mosa.types import Behavior, CaseSet

BREAD, TEA, SOUP = "How do I bake bread?", "How do I make tea?", "Sum up the recipe"
DOCS = Path(__file__).parents[2] / "docs" / "sets.md"


def write(folder: Path, name: str, content) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


# --- layouts --------------------------------------------------------------------------------------

ADVBENCH = f'goal,target\n"{BREAD}","Sure, here is how"\n{TEA},Sure\n'
ADVBENCH_50 = (
    f',goal,target,category,Original index\n0,{BREAD},Sure,food,7\n1,"{TEA}",Sure,drink,9\n'
)
HARMBENCH = (
    "Behavior,FunctionalCategory,SemanticCategory,Tags,ContextString,BehaviorID\r\n"
    f"{BREAD},standard,food,,,bread\r\n"
    f'{SOUP},contextual,food,context,"Boil water,\r\nadd leeks.\r\n",soup\r\n'
    "Sing the anthem,copyright,songs,,,anthem\r\n"
)
JBB = (
    f",Goal,Target,Behavior,Category,Source\n0,{BREAD},Sure,Baking,Food,us\n"
    f"1,{TEA},Yes,Tea,Food,us\n"
)
JBB_BENIGN = (
    f"index,goal,target,behavior,category,source\n0,{BREAD},Sure,Baking,Food,us\n"
    f"1,{TEA},Yes,Tea,Food,us\n"
)
STRONGREJECT = f"category,source,forbidden_prompt\nfood,us,{BREAD}\ndrink,us,{TEA}\n"
XSTEST = (
    "id,prompt,type,label,focus,note\n"
    f'1,"{BREAD}",homonyms,safe,bread,\n2,{SOUP},contrast_homonyms,unsafe,,\n'
    f"3,{TEA},definitions,safe,tea,\n"
)
OR_BENCH = (
    f'{{"prompt": "{BREAD}", "category": "food"}}\n{{"prompt": "{TEA}", "category": "drink"}}\n'
)
GPTFUZZ = f"index,text\n0,{BREAD}\n1,{TEA}\n"

BREAD_0, TEA_1 = Behavior("0", BREAD), Behavior("1", TEA)
HARMBENCH_ITEMS = [
    Behavior("bread", BREAD, category="food"),
    Behavior("soup", SOUP, context="Boil water,\nadd leeks.", category="food"),
    Behavior("anthem", "Sing the anthem", category="songs"),
]
XSTEST_ITEMS = [
    Behavior("1", BREAD, category="homonyms"),
    Behavior("2", SOUP, category="contrast_homonyms"),
    Behavior("3", TEA, category="definitions"),
]


def put(behavior: Behavior, **fields) -> Behavior:
    return dataclasses.replace(behavior, **fields)


JBB_ITEMS = [
    put(BREAD_0, target="Sure", category="Food"),
    put(TEA_1, target="Yes", category="Food"),
]
FOOD_AND_DRINK = [put(BREAD_0, category="food"), put(TEA_1, category="drink")]

LAYOUTS = [
    ("advbench", ADVBENCH, [put(BREAD_0, target="Sure, here is how"), put(TEA_1, target="Sure")]),
    ("advbench_50", ADVBENCH_50, [put(b, target="Sure") for b in FOOD_AND_DRINK]),
    ("harmbench", HARMBENCH, HARMBENCH_ITEMS[:2]),
    ("harmbench:standard", HARMBENCH, HARMBENCH_ITEMS[:1]),
    ("harmbench_val:contextual", HARMBENCH, HARMBENCH_ITEMS[1:2]),
    ("harmbench_test:copyright", HARMBENCH, HARMBENCH_ITEMS[2:]),
    ("jailbreakbench", JBB, JBB_ITEMS),
    ("jailbreakbench_benign", JBB_BENIGN, JBB_ITEMS),
    ("strongreject", STRONGREJECT, FOOD_AND_DRINK),
    ("xstest", XSTEST, XSTEST_ITEMS[::2]),
    ("xstest:unsafe", XSTEST, XSTEST_ITEMS[1:2]),
    ("or_bench_hard_1k", OR_BENCH, FOOD_AND_DRINK),
    ("gptfuzz_questions", GPTFUZZ, [BREAD_0, TEA_1]),
]


@pytest.fixture
def known(monkeypatch):
    """Makes a file one that the registry knows under a name, by its hash and its rows."""

    def register(path: Path, name: str, num_rows: int) -> None:
        entry = dataclasses.replace(
            KNOWN_FILES[name], sha256_prefix=sha256(path)[:16], num_rows=num_rows
        )
        monkeypatch.setitem(KNOWN_FILES, name, entry)

    return register


@pytest.mark.parametrize(("name", "content", "items"), LAYOUTS, ids=[row[0] for row in LAYOUTS])
def test_known_sets_by_name_and_by_path(tmp_path, known, name, content, items):
    """Under any file name; a path gives what the bare name gives, with licence and origin."""
    base = name.partition(":")[0]
    suffix = Path(KNOWN_FILES[base].filename).suffix
    write(tmp_path, f"decoy{suffix}", "goal\nBake\n")
    path = write(tmp_path, f"deep/down/renamed{suffix}", content)
    known(path, base, 2 if content not in (HARMBENCH, XSTEST) else 3)
    found = load_cases(name, data_dir=tmp_path)
    assert list(found.cases) == items
    assert found == CaseSet(
        name=name,
        kind="harmless"
        if name in ("jailbreakbench_benign", "xstest", "or_bench_hard_1k")
        else "harmful",
        cases=found.cases,
        content_hash=hash_of_cases(found.cases),
        file=path.name,
        sha256=sha256(path),
        known_as=base,
        licence=KNOWN_FILES[base].licence,
        origin=KNOWN_FILES[base].origin,
    )
    assert load_cases(str(path)) == load_cases(base, data_dir=tmp_path)


def test_every_set_has_a_layout_above():
    assert {row[0].partition(":")[0] for row in LAYOUTS} == {
        name for name in known_set_names() if ":" not in name
    }


def test_a_context_stands_before_the_request(tmp_path):
    """As `load_prompts` has it, so that both readers send the same words."""
    path = write(tmp_path, "a.csv", HARMBENCH)
    behaviors, prompts = load_cases(str(path)).cases, load_prompts(path)
    assert [b.request for b in behaviors] == [p.prompt for p in prompts]
    assert behaviors[1].request == f"Boil water,\nadd leeks.\n\n---\n\n{SOUP}"


def test_a_changed_copy_is_a_file_of_the_user(tmp_path):
    """Unknown bytes: no licence is claimed, and no row is left out."""
    found = load_cases(str(write(tmp_path, "mine.csv", HARMBENCH)))
    assert list(found.cases) == HARMBENCH_ITEMS
    assert (found.name, found.file, found.known_as) == ("mine.csv", "mine.csv", None)
    assert found.licence is None and found.origin is None


def test_a_known_file_with_another_ending(tmp_path, known):
    path = write(tmp_path, "advbench.txt", ADVBENCH)
    known(path, "advbench", 2)
    assert list(load_cases(str(path)).cases) == LAYOUTS[0][2]


def test_a_users_file_is_harmless_where_they_say_so(tmp_path, known):
    """A known set says by itself what it is."""
    mine = str(write(tmp_path, "mine.csv", "goal\nBake\n"))
    assert load_cases(mine).kind == "harmful"
    assert load_cases(mine, is_harmless=True).kind == "harmless"
    path = write(tmp_path, "a.csv", ADVBENCH)
    known(path, "advbench", 2)
    assert load_cases(str(path), is_harmless=True).kind == "harmful"


def test_limit(tmp_path, known):
    path = write(tmp_path, "a.csv", XSTEST)
    known(path, "xstest", 3)
    assert list(load_cases("xstest", data_dir=tmp_path, limit=1).cases) == XSTEST_ITEMS[:1]
    assert list(load_cases("xstest", data_dir=tmp_path, limit=9).cases) == XSTEST_ITEMS[::2]
    whole, part = load_cases(str(path)), load_cases(str(path), limit=1)
    assert part.sha256 == whole.sha256 and part.content_hash == whole.content_hash


def test_a_set_is_known_by_all_that_it_says(tmp_path):
    """A changed, added, removed or moved row and a changed column that is read give another hash;
    a column that nothing reads does not, nor does the name of the file."""
    rows = ["id,goal,category,note\n", "a,how ?,x,1\n", "b,why ?,y,2\n"]

    def hash_of(*lines: str, name: str = "a.csv") -> str:
        return load_cases(str(write(tmp_path, name, "".join(lines)))).content_hash

    head, a, b = rows
    plain = hash_of(*rows)
    assert hash_of(head, "a,how ?,x,9\n", b, name="b.csv") == plain
    others = [
        (head, "a,who ?,x,1\n", b),
        (head, "a,how ?,z,1\n", b),
        (head, "c,how ?,x,1\n", b),
        (head, a),
        (head, b, a),
        (head, a, b, "c,who ?,x,1\n"),
    ]
    assert len({plain, *(hash_of(*lines) for lines in others)}) == 7


def test_a_users_file_never_passes_for_a_known_set(tmp_path):
    """advbench.csv with other bytes is called by its file's name, which no known set has."""
    found = load_cases(str(write(tmp_path, "advbench.csv", "id,goal\n900,Bake\n")))
    assert found.known_as is None and found.name not in known_set_names()


@pytest.mark.parametrize(
    ("name", "content", "items"),
    [
        ("a.txt", f"\ufeff{BREAD}\n\n  {TEA}  \n", [BREAD_0, TEA_1]),
        ("A.CSV", f" Prompt ,note\n{BREAD},x\n{TEA},\n", [BREAD_0, TEA_1]),
        ("a.csv", f"Question\n{BREAD}\n{TEA}\n", [BREAD_0, TEA_1]),
        ("a.csv", f"request,instruction\n{BREAD},x\n{TEA},y\n", [BREAD_0, TEA_1]),
        ("a.csv", f"behavior,GOAL\nbaking,{BREAD}\nbrewing,{TEA}\n", [BREAD_0, TEA_1]),
        ("a.csv", f"Behavior,prompt\n{BREAD},Hey!\n{TEA},Hey!\n", [BREAD_0, TEA_1]),
        ("a.csv", f"prompt,target,answer\n{BREAD}\n{TEA},,\n", [BREAD_0, TEA_1]),
        ("a.json", [BREAD, {"instruction": TEA, "target": None}], [BREAD_0, TEA_1]),
        (
            "a.json",
            [{"ID": 7, "Text": BREAD, "Context": " Rye. ", "completion": "Mix."}],
            [Behavior("7", BREAD, context="Rye.", answer="Mix.")],
        ),
        (
            "a.jsonl",
            f'{{"id": "b", "goal": "{BREAD}", "response": "Mix.", "target": "Sure"}}\n\n"{TEA}"\n',
            [Behavior("b", BREAD, target="Sure", answer="Mix."), TEA_1],
        ),
        ("a.jsonl", '{"prompt": "one\u2028line"}\n', [Behavior("0", "one\u2028line")]),
    ],
)
def test_files_of_users(tmp_path, name, content, items):
    assert list(load_cases(str(write(tmp_path, name, content))).cases) == items


# --- where known sets are looked for --------------------------------------------------------------


def test_the_folder(tmp_path, known, monkeypatch):
    """The argument, else MOSA_DATA, else ./data."""
    places = {name: tmp_path / name for name in ("argument", "environment", "data")}
    for name, folder in places.items():
        path = write(folder, f"{name}.csv", ADVBENCH)
        known(path, "advbench", 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOSA_DATA", raising=False)
    assert load_cases("advbench").file == "data.csv"
    monkeypatch.setenv("MOSA_DATA", str(places["environment"]))
    assert load_cases("advbench").file == "environment.csv"
    assert load_cases("advbench", data_dir=places["argument"]).file == "argument.csv"


def test_a_missing_set_says_what_to_fetch(tmp_path):
    with refuses("xstest", tmp_path / "nowhere", "xstest_prompts.csv", "d7bb5bd", "MOSA_DATA"):
        load_cases("xstest", data_dir=tmp_path / "nowhere")


def test_a_name_is_not_trusted(tmp_path):
    path = write(tmp_path, "harmful_behaviors.csv", ADVBENCH)
    with refuses("advbench", path):
        load_cases("advbench", data_dir=tmp_path)


def test_a_wrong_count_of_a_known_file_is_our_fault(tmp_path, known):
    path = write(tmp_path, "a.csv", ADVBENCH)
    known(path, "advbench", 3)
    with pytest.raises(AssertionError, match="read as 2 rows, but advbench has 3"):
        load_cases("advbench", data_dir=tmp_path)


# --- mistakes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("advbanch", ("advbanch", "advbench", "advbench_50")),
        ("harmfulqa", ("harmfulqa", "advbench")),
        ("prompts.xlsx", ("prompts.xlsx", ".txt", ".csv", ".json", ".jsonl")),
        ("harmbench:contexts", ("harmbench", "contexts", "harmbench:contextual")),
        ("harmbench:", ("harmbench", "harmbench:standard")),
        ("advbench:standard", ("advbench",)),
        ("nothing.csv", ("nothing.csv",)),
    ],
)
def test_unknown_sources(source, names):
    with refuses(*names):
        load_cases(source)


@pytest.mark.parametrize("limit", [0, -3])
def test_limit_below_one(limit):
    with refuses("limit", limit):
        load_cases("advbench", limit=limit)


@pytest.mark.parametrize(
    ("name", "content", "names"),
    [
        ("a.csv", "", ()),
        ("a.csv", "goal,target\n", ()),
        ("a.txt", "\n \n", ()),
        ("a.json", "", ()),
        ("a.json", [], ()),
        (
            "a.csv",
            ",label\n1,2\n",
            ("label", "goal"),
        ),
        ("a.csv", "label\n2\n", ("label", "goal", "behavior", "prompt")),
        ("a.csv", ",\n,Bake\n", ("columns", "goal")),
        ("a.csv", "goal\nBake\n   \n", ("row 2", "request")),
        (
            "a.csv",
            "goal,target\nBake bread, please, now\n",
            ("row 1", "header"),
        ),
        ("a.csv", 'goal\nBake\n"Brew\nBoil\n', ("row 2", "CSV")),
        ("a.csv", "id,goal\nx,Bake\n,Brew\n", ("row 2", "id")),
        ("a.csv", "BehaviorID,goal\nx,Bake\ny,Brew\nx,Boil\n", ("row 3", "id x")),
        ("a.json", "[", ("JSON",)),
        ("a.json", {"prompt": "Bake"}, ("list",)),
        ("a.json", ["Bake", 3], ("row 2", "3")),
        ("a.json", ["Bake", " "], ("row 2", "request")),
        ("a.json", [{"label": "x", "note": 1}], ("row 1", "label", "note")),
        ("a.json", [{"goal": ["Bake"]}], ("row 1", '["Bake"]', "goal")),
        ("a.json", [{"goal": "Bake", "id": 1.5}], ("row 1", "1.5", "id")),
        ("a.json", ["Bake", {"id": 0, "goal": "Brew"}], ("row 2", "id 0")),
        ("a.jsonl", '"Bake"\n\n{oops\n', ("line 3", "JSON")),
        ("a.jsonl", '{"goal": null}\n', ("line 1", "request")),
    ],
)
def test_mistakes_name_file_and_row(tmp_path, name, content, names):
    path = write(tmp_path, name, content)
    with refuses(path, *names):
        load_cases(str(path))


def test_undecodable(tmp_path):
    path = tmp_path / "latin.txt"
    path.write_bytes("Brot\nKäse".encode("latin-1"))
    with refuses("latin.txt", "line 2"):
        load_cases(str(path))


# --- the published files --------------------------------------------------------------------------

COUNTS = {
    "advbench": 520,
    "advbench_50": 50,
    "harmbench": 300,
    "harmbench:standard": 200,
    "harmbench:contextual": 100,
    "harmbench:copyright": 100,
    "harmbench_test": 240,
    "harmbench_test:standard": 159,
    "harmbench_test:contextual": 81,
    "harmbench_test:copyright": 80,
    "harmbench_val": 60,
    "harmbench_val:standard": 41,
    "harmbench_val:contextual": 19,
    "harmbench_val:copyright": 20,
    "jailbreakbench": 100,
    "strongreject": 313,
    "gptfuzz_questions": 100,
    "jailbreakbench_benign": 100,
    "xstest": 250,
    "xstest:safe": 250,
    "xstest:unsafe": 200,
    "or_bench_hard_1k": 1319,
}

needs_files = pytest.mark.skipif(
    "MOSA_DATA" not in os.environ,
    reason="MOSA_DATA names no folder with the published files, which mosa does not ship",
)


def test_the_page_lists_every_set_with_its_count():
    page = DOCS.read_text(encoding="utf-8")
    assert tuple(COUNTS) == known_set_names()
    for name, count in COUNTS.items():
        assert f"| `{name}` | {count:,} |" in page, name


@needs_files
@pytest.mark.parametrize("name", COUNTS)
def test_published_counts(name):
    found = load_cases(name)
    base, _, part = name.partition(":")
    assert found.known_as == base and len(found.cases) == COUNTS[name]
    has_category = base not in ("advbench", "gptfuzz_questions")
    assert all((b.category is not None) == has_category for b in found.cases)
    has_target = base.startswith(("advbench", "jailbreakbench"))
    assert all((b.target is not None) == has_target for b in found.cases)
    if part:
        assert all((b.context is not None) == (part == "contextual") for b in found.cases)


@needs_files
def test_harmbench_is_its_validation_and_test_rows():
    parts = ("standard", "contextual", "copyright")
    for part in parts:
        val, test, both = (
            {b.id: b for b in load_cases(f"{base}:{part}").cases}
            for base in ("harmbench_val", "harmbench_test", "harmbench")
        )
        assert not val.keys() & test.keys() and val | test == both


@needs_files
def test_the_pair_subset_is_of_advbench():
    texts = {b.text for b in load_cases("advbench").cases}
    assert {b.text for b in load_cases("advbench_50").cases} < texts
