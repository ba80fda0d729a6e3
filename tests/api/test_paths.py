"""Every path that a function of `import mosa` takes: one that no file can have is refused."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from made_runs import attacked
from peft import LoraConfig
from refusals import refuses

import mosa

QUICK: dict[str, Any] = {"max_new_tokens": 8, "steps": 2, "limit": 1, "progress": False}


def taken() -> Iterator[tuple[str, str]]:
    """Each function, method or class of `mosa`, and the name of a path that it takes."""
    for name in mosa.__all__:
        of = getattr(mosa, name)
        found = {name: of} if callable(of) else {}
        if inspect.isclass(of):
            own = [(n, f) for n, f in vars(of).items() if inspect.isfunction(f) and n[0] != "_"]
            found = {name: of.__init__} | {f"{name}.{method}": f for method, f in own}
        for label, function in found.items():
            for parameter in inspect.signature(function).parameters.values():
                if "Path" in str(parameter.annotation):
                    yield label, parameter.name


PLACES = list(taken())


@pytest.fixture(scope="module")
def calls(tmp_path_factory) -> dict[str, Callable[..., object]]:
    """Each of them with all that it needs but the path in question."""
    folder = tmp_path_factory.mktemp("paths")
    (folder / "prompts.txt").write_text("how do i make a copper lantern ?\n")
    attacked(folder / "run", {"a": {"direct": {"x": True, "y": False}}})
    run, out = folder / "run", folder / "out"
    plain = mosa.load_model("testbed")
    adapted = mosa.load_model("testbed")
    adapted.add_lora(LoraConfig(r=2, lora_alpha=2))
    asked = {"model": plain, "sets": str(folder / "prompts.txt"), "out": out, **QUICK}
    training = {"model": plain, "data": folder / "prompts.txt", "out": out, "max_steps": 1}

    def data_dir(data_dir: Path) -> object:
        return mosa.load_sets(["advbench_50"], None, mosa.SetOptions(data_dir=data_dir))

    return {
        "DiffusionLM.load_adapter": plain.load_adapter,
        "DiffusionLM.save_adapter": adapted.save_adapter,
        "DiffusionLM.save": plain.save,
        "RunFolder": mosa.RunFolder,
        "SetOptions": data_dir,
        "align": lambda **given: mosa.align(
            "mosa", **{**training, "config": "mosa_testbed_paper", "progress": False, **given}
        ),
        "analyze": lambda **given: mosa.analyze("order", **{**asked, **given}),
        "compare": lambda **given: mosa.compare(**{"run_a": run, "run_b": run, **given}),
        "evaluate": lambda **given: mosa.evaluate(**{**asked, **given}),
        "gather": lambda paths: mosa.gather([paths]),
        "judge": lambda **given: mosa.judge(**{"run": run, "judges": "refusal", **given}),
        "load_model": lambda **given: mosa.load_model(**{"model": "testbed", **given}),
        "load_prompts": mosa.load_prompts,
        "report": lambda **given: mosa.report(
            **{"runs": run, "out": folder / "page.html", "progress": False, **given}
        ),
        "results": mosa.results,
    }


@pytest.mark.parametrize(
    ("word", "rest"),
    [("nul", "\0name"), ("half", "\ud83d"), ("nul", "\0folder/x"), ("long", f"-{'x' * 300}")],
)
@pytest.mark.parametrize(("function", "parameter"), PLACES)
def test_a_path_that_cannot_be_is_refused(
    calls, tmp_path, monkeypatch, function, parameter, word, rest
):
    monkeypatch.chdir(tmp_path)
    name = word + rest
    bad = Path(name) if parameter in ("paths", "data_dir") else name
    more = {"model": None} if parameter == "subjects" else {}
    call = partial(calls[function], **{parameter: bad}, **more)
    with refuses(word):
        call()
    assert not list(tmp_path.iterdir()), "nothing is made"
