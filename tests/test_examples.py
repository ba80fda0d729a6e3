"""The examples as a reader runs them: the notebook in a kernel, the script on a tiny checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
NOTEBOOK = EXAMPLES / "attack_look_align.ipynb"


def cells() -> list[dict]:
    return json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]


def test_the_notebook_is_stored_without_outputs():
    """What a reader sees is what the cells give on the reader's machine."""
    for cell in cells():
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None)


def test_the_tutorial_has_the_steps_of_the_notebook():
    """Each block of Python on the page is a cell, in the notebook's order."""
    page = (EXAMPLES.parent / "docs" / "tutorial.md").read_text(encoding="utf-8")
    shown = [block.split("```")[0].strip() for block in page.split("```python\n")[1:]]
    sources = ["".join(cell["source"]).strip() for cell in cells() if cell["cell_type"] == "code"]
    assert shown == sources


@pytest.mark.slow
def test_the_notebook_runs(tmp_path):
    """From top to bottom in a kernel, whose event loop is running; denoisings play, figures are
    tables, and the run holds the model before and after."""
    nbformat = pytest.importorskip("nbformat", reason="needs the extra `notebook`")
    client = pytest.importorskip("nbclient", reason="needs the extra `notebook`").NotebookClient
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        "".join(str(out.get("data", {})) for out in c.get("outputs", ())) for c in notebook.cells
    ]
    assert sum("<iframe srcdoc" in text for text in shown) >= 4
    assert any("testbed+aligned" in text and "<table" in text for text in shown)
    assert any("<Decision " in text for text in shown)
    told = [out for cell in notebook.cells for out in cell.get("outputs", ()) if "text" in out]
    assert not [out.text for out in told if out.get("name") == "stderr"]
    assert not any("Training Loss" in text for text in shown), "a bar that nobody asked for"


@pytest.mark.slow  # `make examples` runs it
def test_the_script_runs_on_a_checkpoint_in_the_layout_of_llada(new_tiny_llada, tmp_path):
    """Random weights: it attacks, trains two updates, attacks again and writes a page."""
    new_tiny_llada().save(tmp_path / "model")
    rows = [json.dumps({"prompt": f"how to {i}", "answer": "so"}) for i in range(4)]
    (tmp_path / "harmful.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "refusals.txt").write_text("no .\n")
    (tmp_path / "starts.txt").write_text("yes\n")
    (tmp_path / "config.yaml").write_text(
        "base: mosa_llada_paper\nwindow_start: 2\nwindow_end: 16\n"
        f"safe_phrases: {tmp_path / 'refusals.txt'}\nharmful_phrases: {tmp_path / 'starts.txt'}\n"
    )
    words = [str(tmp_path / "model"), "--harmful", str(tmp_path / "harmful.jsonl")]
    words += ["--out", str(tmp_path / "out"), "--config", str(tmp_path / "config.yaml")]
    words += ["--max-steps", "2", "--max-new-tokens", "24", "--steps", "4", "--attacks", "direct"]
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / "real_model.py"), *words],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "model+aligned" in done.stdout and "redact" not in done.stderr
    assert (tmp_path / "out" / "report.html").is_file()
