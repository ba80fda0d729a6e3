"""The documentation: links, commands, worked examples and the site, as a reader meets them."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from mosa import cli

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
BESIDE = [
    ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CHANGELOG", "CONTRIBUTING", "LOG", "SECURITY")
]
CARDS = ROOT / "src/mosa/testbed/checkpoints"
BESIDE += [CARDS / "README.md", CARDS / "block" / "README.md"]
"""Markdown that is part of the site and stands elsewhere."""
NOT_YET: set[str] = set()
"""Commands that pages name and the command line lacks; empty once all are built."""
EXAMPLES = ("add_an_attack", "add_a_family", "add_a_judge")
"""Pages whose blocks make a new part."""


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^(`{3,})[^`\n]*\n.*?^\1$", "", text, flags=re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    """The contents of a page's blocks of one language, those inside other blocks too."""
    found = re.findall(rf"^`{{3,4}}{language}\n(.*?)^`{{3,4}}$", text, re.DOTALL | re.MULTILINE)
    return [part for block in found for part in [block, *blocks(block, language)]]


# --- links ----------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """What links can name in a page: its headings, in small letters and joined by hyphens."""
    headings = re.findall(r"^#+ (.+)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=name_of)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(text))):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link} is not there"
        assert target.resolve().is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"no heading {link}"


def test_every_page_is_in_the_navigation():
    """index.md leads to every page beside it, and the pages on attacks and judges to theirs."""
    for index in (DOCS / "index.md", DOCS / "attacks/README.md", DOCS / "judges/README.md"):
        links = re.findall(r"\]\(([^)#]+\.md)\)", index.read_text(encoding="utf-8"))
        led = {(index.parent / link).resolve() for link in links}
        assert {page for page in index.parent.glob("*.md") if page != index} <= led
        assert len(links) == len(led) or index.name != "index.md", "a page is listed twice"


# --- commands -------------------------------------------------------------------------------------


def commands() -> list[tuple[str, list[str]]]:
    """Every `mosa` line of the pages' shell blocks, with its page, split into words."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for block in [*blocks(text, "sh"), *blocks(text, "bash")]:
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("mosa "):
                    found.append((name_of(page), shlex.split(line)[1:]))
    return found


@pytest.mark.parametrize(
    ("page", "words"),
    [pair for pair in commands() if pair[1][0] not in NOT_YET],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_commands_are_understood(page, words):
    """Each fits the parser of its command."""
    cli.parse(words)


def test_no_command_is_excused_without_need():
    assert not {name.split()[0] for name in cli.COMMANDS} & NOT_YET


@pytest.mark.parametrize("page", [*PAGES, *BESIDE, ROOT / "README.md"], ids=name_of)
def test_options_are_written_with_dashes(page):
    assert re.findall(r"--[a-z]+_\w+", page.read_text(encoding="utf-8")) == []


# --- worked examples ------------------------------------------------------------------------------


def apply(text: str, folder: Path) -> None:
    """Do to a copy of the repository what a page says: write its files, make its changes.

    A file is a block behind a line that holds its path alone. A change is a block of diff without
    line numbers: the lines that begin with a space are looked for, those with a plus put in.
    """
    new = re.findall(
        r"^`([\w/.]+)`:\n\n(`{3,4})\w+\n(.*?)^\2$", text, flags=re.DOTALL | re.MULTILINE
    )
    assert new
    for path, _, content in new:
        assert not (folder / path).exists(), f"{path} is there already"
        (folder / path).write_text(content, encoding="utf-8")
    for block in blocks(text, "diff"):
        header, *hunks = block.split("@@\n")
        file = folder / header.removeprefix("--- ").strip()
        changed = file.read_text(encoding="utf-8")
        for hunk in hunks:
            lines = hunk.splitlines()
            before = "\n".join(line[1:] for line in lines if not line.startswith("+"))
            after = "\n".join(line[1:] for line in lines)
            assert changed.count(f"\n{before}\n") == 1, f"{file.name} has not once:\n{before}"
            changed = changed.replace(f"\n{before}\n", f"\n{after}\n")
        file.write_text(changed, encoding="utf-8")


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the repository with the parts that the pages make."""
    folder = tmp_path_factory.mktemp("docs") / "copy"
    folder.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "figures")
    for name in ("src", "tests", "docs"):
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    for page in EXAMPLES:
        apply((DOCS / f"{page}.md").read_text(encoding="utf-8"), folder)
    return folder


def run_in(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(folder / "src"), str(folder / "tests")])
    return subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.integration
def test_the_examples_pass_their_tests_and_ours(extended):
    """The tests on the pages, and those that hold for every attack, family and judge."""
    new = [f"tests/{p}" for p in ("attacks/test_refusal_suppression.py", "judges/test_opening.py")]
    done = run_in(
        extended,
        *("-m", "pytest", "-q", "-p", "no:cacheprovider", *new, "tests/families/test_meadow.py"),
        *("tests/families/test_families.py", "tests/families/test_packed.py"),
        "tests/attacks/test_conformance.py",
        *("tests/judges/test_table_of_judges.py", "tests/test_docs_tables.py", "-k"),
        "meadow or opening or refusal_suppression and not runs_on and not access or in_the_table"
        " or table_of_the_page or has_its_line or claimed_once or tiny_configs",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    where = run_in(extended, "-c", "import mosa; print(mosa.__file__)").stdout
    assert where.startswith(str(extended)), "the tests ran on another copy"
    passed = int(re.findall(r"(\d+) passed", done.stdout)[0])
    assert passed >= 20, done.stdout


def test_the_examples_are_written_as_we_write(extended):
    files = [*(extended / "src").rglob("*.py"), *(extended / "tests").rglob("*.py")]
    new = [str(f) for f in files if not (ROOT / f.relative_to(extended)).exists()]
    assert len(new) == 6
    for words in (("check",), ("format", "--check")):
        done = run_in(extended, "-m", "ruff", *words, *new)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_file_of_subjects_is_the_one_shown():
    (shown,) = blocks((DOCS / "subjects.md").read_text(encoding="utf-8"), "yaml")
    assert shown == (DOCS / "subjects.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", ["quick_start", "align_your_own_model"])
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Those of a page in turn, in one folder."""
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in blocks((DOCS / f"{page}.md").read_text(encoding="utf-8"), "python"):
        exec(compile(code, f"{page}.md", "exec"), names)
    assert names


# --- the site -------------------------------------------------------------------------------------


class Assets(HTMLParser):
    """What a page makes a browser fetch without being asked: scripts, styles, pictures, frames."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if tag == "a" and name == "href":
                self.links.append(value or "")
            elif name in ("src", "srcset", "href", "data", "poster", "action"):
                self.found.append(value or "")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("sphinx") is None, reason="needs the extra `docs`")
def test_the_site_builds_without_warnings_and_asks_no_network(tmp_path):
    site = tmp_path / "site"
    words = ("-q", "-W", "--keep-going", "-c", "docs", "-d", str(tmp_path / "doctrees"))
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", *words, ".", str(site)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > len(PAGES)
    for page in pages:
        parser = Assets()
        parser.feed(page.read_text(encoding="utf-8"))
        for address in parser.found:
            assert not re.match(r"(https?:)?//", address), f"{page.name} asks for {address}"
        for link in parser.links:
            path = link.partition("#")[0]
            if path and not re.match(r"(https?|mailto):", link):
                assert (page.parent / path).exists(), f"{page.name} links to {link}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"(@import|url\()\s*['\"]?(https?:)?//", text), style.name
