"""Known files and folders are found by their bytes, wherever they lie."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

from mosa.data import KNOWN_FILES, registry
from mosa.data.registry import candidates, data_folder, find
from mosa.inputs import sha256


def test_a_file_is_what_it_holds(tmp_path):
    """Its name says where to look first, and nothing else."""
    (tmp_path / "deep").mkdir()
    renamed, namesake = tmp_path / "deep" / "copy.jsonl", tmp_path / "train.jsonl"
    renamed.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n')
    namesake.write_text("{}\n")
    (tmp_path / "copy.csv").write_bytes(renamed.read_bytes())
    known = dataclasses.replace(KNOWN_FILES["gsm8k_train"], sha256_prefix=sha256(renamed)[:16])
    assert find(known, tmp_path) == renamed
    assert candidates(known, tmp_path) == [namesake, renamed]
    assert find(KNOWN_FILES["gsm8k_train"], tmp_path) is None
    assert find(known, tmp_path / "nowhere") is None


def test_a_folder_counts_if_it_is_whole(tmp_path):
    """Its hash is over all files, in the order of parts and names."""
    mmlu = tmp_path / "some" / "folder"
    digest = hashlib.sha256()
    for part in ("dev", "test"):
        (mmlu / part).mkdir(parents=True)
        for name in ("b", "a"):
            (mmlu / part / f"{name}_{part}.csv").write_text(f"{part} of {name}")
    for part, name in (("dev", "a"), ("dev", "b"), ("test", "a"), ("test", "b")):
        digest.update(f"{part} of {name}".encode())
    known = dataclasses.replace(KNOWN_FILES["mmlu"], sha256_prefix=digest.hexdigest()[:16])
    assert find(known, tmp_path) == find(known, mmlu) == mmlu
    (mmlu / "test" / "b_test.csv").write_text("changed")
    assert find(known, tmp_path) is None
    (mmlu / "test" / "b_test.csv").unlink()
    assert find(known, tmp_path) is None


def test_where_files_are_looked_for(monkeypatch):
    monkeypatch.setenv("MOSA_DATA", "/there")
    assert data_folder(Path("here")) == Path("here")
    assert data_folder(None) == Path("/there")
    monkeypatch.delenv("MOSA_DATA")
    assert data_folder(None) == Path("data")


def test_no_name_and_no_hash_is_given_twice():
    table = Path(registry.__file__).with_name("known_files.csv").read_text(encoding="utf-8")
    entries = KNOWN_FILES.values()
    assert len(entries) == len(table.splitlines()) - 1
    assert len({entry.sha256_prefix for entry in entries}) == len(entries)
