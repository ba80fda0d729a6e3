"""The shape of the project: imports, names, tables and the README, read from the source."""

import ast
import functools
import graphlib
import inspect
import re
import shlex
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
import shape_checks
import torch
from jaxtyping import TypeCheckError

from mosa import cli
from mosa.draws import Draws, counter_uniform

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "mosa"

ORDER = (
    ("types", ()),
    ("files", ("types",)),
    ("terminal", ()),
    ("inputs", ("types",)),
    ("hub", ("types", "inputs")),
    ("provenance", ("types", "inputs")),
    ("stats", ("types",)),
    ("tables", ("terminal",)),
    ("player", ("terminal",)),
    ("draws", ()),
    ("worker", ("types",)),
    ("world", ("types", "inputs")),
    ("data", ("types", "files", "inputs", "provenance")),
    ("chat", ("types", "files", "terminal", "inputs", "hub", "provenance", "worker")),
    ("families", ("types", "files", "inputs", "hub", "provenance", "draws", "worker")),
    ("denoising", ("types", "files", "terminal", "inputs", "player", "draws", "world", "families")),
    ("judges", ("types", "files", "inputs", "provenance", "stats", "world", "data", "chat")),
)
"""The parts at the bottom, each with what it may import."""
MAY_IMPORT: dict[str, set[str]] = {part: set(below) for part, below in ORDER}
# From here on, each part may import everything before it.
for part in (
    "alignment",
    "suffix_search",
    "attacks",
    "responder",
    "served_canvas",
    "served",
    "probes",
    "testbed",
    "utility",
    "runs",
    "evidence",
    "exports",
    "catalogue",
    "reporting",
    "experiments",
    "bench",
    "api",
    "__init__",
    "cli",
    "__main__",
):
    MAY_IMPORT[part] = set(MAY_IMPORT)
MAY_IMPORT["attacks"] -= {"alignment"}
MAY_IMPORT["bench"] -= {"experiments"}

MODULES = sorted(PACKAGE.rglob("*.py"))


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """The file's syntax, the module first."""
    return tuple(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """What the tests of this file share would slow later collections of garbage."""
    yield
    nodes_of.cache_clear()


def imported_parts(path: Path) -> set[tuple[str, int]]:
    """Every part of mosa that a file imports, at its head or inside a function, with the line."""
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif not isinstance(node, ast.ImportFrom):
            continue
        else:
            assert node.level == 0, f"{path}:{node.lineno} imports relatively"
            base = node.module or ""
            names = [f"mosa.{a.name}" for a in node.names] if base == "mosa" else [base]
        found |= {(name.split(".")[1], node.lineno) for name in names if name.startswith("mosa.")}
        if "mosa" in names:
            found.add(("__init__", node.lineno))
    return found


def test_every_declared_shape_is_checked_while_the_tests_run():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    (checked,) = re.findall(r"--jaxtyping-packages=(\S+)", options["addopts"])
    parts = {part.removeprefix("mosa.").replace(".", "/") for part in checked.split(",")[:-1]}
    for path in MODULES:
        if "from jaxtyping import" in path.read_text(encoding="utf-8"):
            place = path.relative_to(PACKAGE).with_suffix("")
            assert {str(place), *map(str, place.parents)} & parts, f"{path} is not checked"
            names = {
                alias.name
                for node in nodes_of(path)
                if isinstance(node, ast.ImportFrom) and node.module == "jaxtyping"
                for alias in node.names
            }
            assert names <= set(shape_checks.KINDS), path.relative_to(ROOT)


def test_a_wrong_shape_is_an_error_while_the_tests_run():
    """Of a dataclass and of a function; a method that declares none is as it was written."""
    one, two = torch.zeros(4, dtype=torch.long), torch.zeros(3, dtype=torch.long)
    with pytest.raises(TypeCheckError):
        Draws(one, one, two, one)
    with pytest.raises(TypeCheckError):
        counter_uniform(0, one, two, 0, 0)
    assert inspect.unwrap(Draws.uniform) is not Draws.uniform
    assert inspect.unwrap(Draws.__getitem__) is Draws.__getitem__


def test_imports_follow_the_arrows():
    for path in MODULES:
        part = part_of(path)
        assert part in MAY_IMPORT, f"{part} has no place in the order of imports"
        for imported, line in imported_parts(path):
            assert imported == part or imported in MAY_IMPORT[part], (
                f"{path.relative_to(ROOT)}:{line}: {part} must not import {imported}"
            )


def test_the_check_sees_a_forbidden_import(tmp_path):
    """A late import inside a function counts too."""
    file = tmp_path / "x.py"
    file.write_text("def f():\n    from mosa.reporting import html\n    import mosa.cli\n")
    assert imported_parts(file) == {("reporting", 2), ("cli", 3)}


def test_no_verdict_steers_an_attack():
    """Of the judges, an attack reads the phrases of refusal alone (design decision 6)."""
    for path in MODULES:
        if part_of(path) == "attacks":
            source = path.read_text(encoding="utf-8")
            read = set(re.findall(r"mosa\.judges[\w.]*", source))
            assert read <= {"mosa.judges.refusal"}, path.relative_to(ROOT)


def module_of(path: Path) -> str:
    """The name by which a file is imported, without the package's own."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_modules(path: Path) -> set[str]:
    """Every file of mosa that a file imports, by its module's name."""
    known = {module_of(module) for module in MODULES}
    found = set()
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            # What is no file is a name of the package's front door.
            names = [n if n.removeprefix("mosa.") in known else node.module for n in inside]
        else:
            continue
        found |= {name.removeprefix("mosa.") for name in names if name.startswith("mosa.")}
    return found & known


def test_no_files_import_each_other_in_a_circle():
    """A late import inside a function counts too."""
    graph = {module_of(path): imported_modules(path) - {module_of(path)} for path in MODULES}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        raise AssertionError(f"a circle of imports: {' <- '.join(error.args[1])}") from None


def public_types(path: Path) -> list[str]:
    """The classes of a file, and the names that it gives to types; no variables of types."""
    found = []
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in found if re.match("[A-Z].*[a-z]", name)]


def test_a_public_type_has_a_name_of_its_own():
    places = defaultdict(list)
    for path in MODULES:
        for name in public_types(path):
            places[name].append(str(path.relative_to(PACKAGE)))
    twice = {name: files for name, files in places.items() if len(files) > 1}
    assert not twice, f"one name, several types: {twice}"


SHARED_NAMES = {"bound", "main", "read", "run", "write"}
"""Of functions that a table calls by their place: attacks, probes, findings and exports."""


def test_a_public_function_has_a_name_of_its_own():
    places = defaultdict(set)
    for path in MODULES:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                places[node.name].add(str(path.relative_to(PACKAGE)))
    twice = {name: files for name, files in places.items() if len(files) > 1 and name[0] != "_"}
    assert twice.keys() <= SHARED_NAMES, f"one name, several functions: {twice}"


def test_the_check_sees_a_name_of_a_type(tmp_path):
    file = tmp_path / "x.py"
    file.write_text(
        "class Run: ...\nKey = tuple[str, int]\nT = TypeVar('T')\nMOST = 3\n_Own = int\n"
    )
    assert public_types(file) == ["Run", "Key"]


FORBIDDEN = {
    "hasattr": "ask for the type instead",
    "eval": "nothing is evaluated",
    "exec": "nothing is executed",
}


def test_habits():
    """No hasattr, no bare or silent except, no remote code, no pickle."""
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        for node in nodes_of(path):
            where = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                # The sandbox runs what a model wrote as the published harness does.
                is_sandbox = path.name == "sandbox_child.py" and node.func.id == "exec"
                assert is_sandbox or node.func.id not in FORBIDDEN, f"{where}: {node.func.id}"
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{where}: a bare except"
                silent = len(node.body) == 1 and isinstance(node.body[0], ast.Pass)
                assert not silent, f"{where}: an error that is passed over"
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                raise AssertionError(f"{where}: remote code")
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "dill"}, where
        assert "torch.load(" not in source, f"{path}: unpickles"


WRITES = re.compile(r"\.write_text\(|\.write_bytes\(|open\([^()]*[\"'][wx][bt+]*[\"']")
WRITERS = {
    "files.py": "the one place that writes files",
    "bench/common.py": "tells the kernel to forget a peak of memory",
    "utility/sandbox_child.py": "runs without the package, on files of its own",
}


def test_files_are_written_in_one_place():
    """Outside mosa.files nothing opens a file to write it."""
    for path in MODULES:
        found = WRITES.search(path.read_text(encoding="utf-8"))
        if str(path.relative_to(PACKAGE)) in WRITERS:
            assert found, f"{path.relative_to(ROOT)} is excepted and writes nothing"
        else:
            assert not found, f"{path.relative_to(ROOT)} writes with {found[0]}"


FAMILY_WORDS = re.compile(r"\b(llada|dream|mmada)\b", re.IGNORECASE)


def code_names(path: Path) -> list[tuple[str, int]]:
    """Identifiers and one-word strings of a file; docstrings and sentences are prose."""
    found = []
    for node in nodes_of(path):
        if isinstance(node, ast.Name):
            found.append((node.id, node.lineno))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and " " not in node.value.strip()
        ):
            found.append((node.value, node.lineno))
    return found


def test_families_are_named_in_families_alone():
    """Outside families/ and the testbed (which has a config.json to write) no code knows one."""
    for path in MODULES:
        if part_of(path) not in ("families", "testbed"):
            for text, line in code_names(path):
                assert not FAMILY_WORDS.search(text), f"{path.relative_to(ROOT)}:{line}: {text!r}"


def test_every_folder_of_tests_has_a_part():
    for folder in (ROOT / "tests").iterdir():
        if folder.is_dir() and not folder.name.startswith(("_", ".", "fuzz")):
            assert (PACKAGE / folder.name).is_dir() or (PACKAGE / f"{folder.name}.py").exists()


@functools.cache
def errors_that_users_read() -> frozenset[str]:
    """UserError, ChatError and what is derived from them, by name."""
    derived = {"UserError", "ChatError"}
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef) and derived & set(map(ast.unparse, node.bases)):
                derived.add(node.name)
    return frozenset(derived)


def sentences_checked(source: str) -> list[int]:
    """Lines on which `pytest.raises` itself expects an error that users read."""
    errors = errors_that_users_read()
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "raises":
            words = {word.id for word in ast.walk(node) if isinstance(word, ast.Name)}
            found += [node.lineno] if words & errors else []
    return found


def test_the_wording_of_a_message_is_free():
    """Tests expect a UserError or ChatError by `refuses` of tests/refusals.py, by names in it."""
    for path in sorted((ROOT / "tests").rglob("*.py")):
        lines = sentences_checked(path.read_text(encoding="utf-8"))
        assert not lines, f"{path.relative_to(ROOT)}:{lines}: use refuses(names)"


def test_the_check_sees_a_sentence():
    assert errors_that_users_read() > {"UserError", "DamagedRun", "UselessRepliesError"}
    code = 'with pytest.raises({}, match="at least 1"):\n    pass\n'
    for error in ("UserError", "DamagedRun", "(UserError, OSError)"):
        assert sentences_checked(code.format(error)) == [1]
    assert sentences_checked(code.format("KeyError")) == []


# --- README ---------------------------------------------------------------------------------------


def test_a_file_opens_with_its_clause():
    """The first line of a file's docstring says in one sentence what the file holds."""
    for path in MODULES:
        module = nodes_of(path)[0]
        assert isinstance(module, ast.Module)
        assert ast.get_docstring(module), f"{path.relative_to(ROOT)} does not say what it holds"


def test_readme_links_exist():
    for page in ROOT.glob("*.md"):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if "://" not in link:
                assert (ROOT / link).exists(), f"{page.name} links to {link}"


# --- packaging ------------------------------------------------------------------------------------


def test_constraints_pin_every_dependency():
    """Each requirement of pyproject.toml has one exact version, without a local suffix."""
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert pins["torch"] == "2.13.0"
    assert not any("+" in version for version in pins.values())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *sum(project["optional-dependencies"].values(), [])]
    names = {re.split(r"[<>=~!\[ ]", requirement)[0].lower() for requirement in wanted}
    assert names <= set(pins)


# --- commands in the README -----------------------------------------------------------------------


def readme_commands() -> list[list[str]]:
    """Every `mosa` line of the README's shell blocks, split into words."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("mosa ")]


@pytest.mark.parametrize("words", readme_commands(), ids=" ".join)
def test_readme_commands_are_understood(words):
    """Each fits the parser of its command; tests/test_main_job.py runs them at toy size."""
    cli.parse(words)


def test_readme_make_targets_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    targets = re.findall(r"(?:^|`)make ([a-z-]+)", text, flags=re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "demo" in targets
    for target in set(targets):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_readme_python_example_runs(tmp_path, monkeypatch):
    """The ten lines as they stand."""
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    code = text.split("```python\n")[1].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    exec(compile(code, "README.md", "exec"), {})


OPENS = {
    "bench/common.py": "our own shapes; the kernel's figures of memory",
    "catalogue.py": "our own",
    "cli/help.py": "our own",
    "data/registry.py": "our own",
    "families/checkpoint.py": "what a library has just saved",
    "player/__init__.py": "our own",
    "reporting/page.py": "our own",
    "utility/authors_decoders.py": "our own",
    "utility/harness_task.py": "our own",
    "utility/local_data.py": "files that are known by their hash",
    "utility/sandbox_child.py": "within the sandbox",
}
"""The files that open others beside inputs.py, which reads, and files.py, which writes; and why."""
FILE_CALLS = {"open", "read_text", "read_bytes", "write_text", "write_bytes", "unlink", "rmtree"}
FILE_CALLS |= {"mkdir", "rmdir", "rename", "touch", "copytree", "copyfile", "safe_load"}


def test_files_are_read_and_written_in_one_place():
    found = set()
    for path in MODULES:
        for node in nodes_of(path):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                method, on = called.rpartition(".")[2], called.rpartition(".")[0]
                imported = (
                    {"write_text", "write_bytes", "read_text", "read_bytes"} if not on else ()
                )
                if (
                    method in FILE_CALLS
                    and method not in imported
                    and "devnull" not in ast.unparse(node)
                ):
                    found.add(path.relative_to(PACKAGE).as_posix())
    assert found - {"files.py", "inputs.py"} == set(OPENS)
