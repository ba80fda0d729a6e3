"""Known benchmark files: their authors, licences, and the hashes of their bytes.

No file ships with the package; users bring their own copies, and `verify` says whether a copy is
the one that papers report on. `sha256_prefix` holds the first 16 hex digits, `found_at` the place
that holds these bytes: not always the authors' own repository, whose files may have changed since.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mosa.types import UserError


@dataclass(frozen=True)
class KnownFile:
    """One published file and what is known of it."""

    name: str
    """The registry's name for it, for example "advbench"."""
    filename: str
    """The name under which its authors publish it."""
    role: Literal["harmful", "benign", "utility", "training"]
    """What it is for; a file that is evaluated on must not be trained on."""
    num_rows: int
    sha256_prefix: str
    licence: str
    origin: str
    """The repository of its authors."""
    found_at: str
    """The repository on GitHub, path and commit from which the hashed copy was taken."""


@dataclass(frozen=True)
class KnownFolder:
    """A published set of many files, which counts as known if it is whole."""

    name: str
    parts: tuple[str, ...]
    """Patterns of its files below the folder; the files of each are taken in order of their names.
    """
    num_files: int
    num_rows: int
    sha256_prefix: str
    """Of all files one after the other, in the order of `parts`."""
    licence: str
    origin: str
    found_at: str


_HARMBENCH_COPY = "ZichenWen1/DIJA: benchmarks/HarmBench/data/behavior_datasets"

KNOWN_FILES: dict[str, KnownFile] = {
    known.name: known
    for known in (
        KnownFile(
            "advbench",
            "harmful_behaviors.csv",
            "harmful",
            520,
            "6cd1a5c63c07610d",
            "MIT",
            "llm-attacks/llm-attacks",
            "andyrdt/refusal_direction: dataset/raw/advbench.csv @ 9d852fa",
        ),
        KnownFile(
            "advbench_50",
            "harmful_behaviors_custom.csv",
            "harmful",
            50,
            "66af8279f7690e1b",
            "MIT",
            "patrickrchao/JailbreakingLLMs",
            "patrickrchao/JailbreakingLLMs: data/harmful_behaviors_custom.csv @ 6379ef7",
        ),
        KnownFile(
            "harmbench",
            "harmbench_behaviors_text_all.csv",
            "harmful",
            400,
            "8d81accedd38eaaf",
            "MIT",
            "centerforaisafety/HarmBench",
            f"{_HARMBENCH_COPY}/harmbench_behaviors_text_all.csv @ 905f39f",
        ),
        KnownFile(
            "harmbench_test",
            "harmbench_behaviors_text_test.csv",
            "harmful",
            320,
            "75d257b3e7428c52",
            "MIT",
            "centerforaisafety/HarmBench",
            f"{_HARMBENCH_COPY}/harmbench_behaviors_text_test.csv @ 905f39f",
        ),
        KnownFile(
            "harmbench_val",
            "harmbench_behaviors_text_val.csv",
            "harmful",
            80,
            "7bfaaa5e2b9b9500",
            "MIT",
            "centerforaisafety/HarmBench",
            f"{_HARMBENCH_COPY}/harmbench_behaviors_text_val.csv @ 905f39f",
        ),
        KnownFile(
            "jailbreakbench",
            "harmful-behaviors.csv",
            "harmful",
            100,
            "45e9a8923b28f547",
            "MIT",
            "JailbreakBench/JBB-Behaviors",
            "andyrdt/refusal_direction: dataset/raw/jailbreakbench.csv @ 9d852fa",
        ),
        KnownFile(
            "strongreject",
            "strongreject_dataset.csv",
            "harmful",
            313,
            "4dd70357e4ff8b5d",
            "MIT",
            "alexandrasouly/strongreject",
            "andyrdt/refusal_direction: dataset/raw/strongreject.csv @ 9d852fa",
        ),
        KnownFile(
            "gptfuzz_questions",
            "question_list.csv",
            "harmful",
            100,
            "18531eb6bc1c8fc0",
            "MIT",
            "sherdencooper/GPTFuzz",
            "sherdencooper/GPTFuzz: datasets/questions/question_list.csv @ 1eddeb5",
        ),
        KnownFile(
            "jailbreakbench_benign",
            "benign-behaviors.csv",
            "benign",
            100,
            "c0958ac974fb6629",
            "MIT",
            "JailbreakBench/JBB-Behaviors",
            "Baisayan/hack: data/benign-behaviors.csv @ 2b37da1",
        ),
        KnownFile(
            "xstest",
            "xstest_prompts.csv",
            "benign",
            450,
            "11783fb294ed0174",
            "CC-BY-4.0",
            "paul-rottger/exaggerated-safety",
            "paul-rottger/exaggerated-safety: xstest_prompts.csv @ d7bb5bd",
        ),
        KnownFile(
            "or_bench_hard_1k",
            "or_bench_hard_1k.jsonl",
            "benign",
            1319,
            "ade1856f3d08aa91",
            "CC-BY-4.0",
            "bench-llm/or-bench",
            "n8thantran/euea-replication: data/orbench.jsonl @ 1ed7096",
        ),
        KnownFile(
            "gsm8k_test",
            "test.jsonl",
            "utility",
            1319,
            "3730d312f6e34405",
            "MIT",
            "openai/grade-school-math",
            "openai/grade-school-math: grade_school_math/data/test.jsonl @ 3101c7d",
        ),
        KnownFile(
            "gsm8k_train",
            "train.jsonl",
            "utility",
            7473,
            "17f347dc51477c50",
            "MIT",
            "openai/grade-school-math",
            "openai/grade-school-math: grade_school_math/data/train.jsonl @ 3101c7d",
        ),
        KnownFile(
            "humaneval",
            "HumanEval.jsonl.gz",
            "utility",
            164,
            "b796127e635a67f9",
            "MIT",
            "openai/human-eval",
            "openai/human-eval: data/HumanEval.jsonl.gz @ 6d43fb9",
        ),
        KnownFile(
            "mbpp",
            "mbpp.jsonl",
            "utility",
            974,
            "ccf64ceae9c5403b",
            "CC-BY-4.0",
            "google-research/google-research",
            "OckBench/OckBench: data/mbpp.jsonl @ b72752a",
        ),
        KnownFile(
            "mbpp_sanitized",
            "sanitized-mbpp.json",
            "utility",
            427,
            "8ac32b2799150228",
            "CC-BY-4.0",
            "google-research/google-research",
            "mrigankpawagi/PropertyEval: sanitized-mbpp.json @ b2be813",
        ),
        KnownFile(
            "ifeval",
            "input_data.jsonl",
            "utility",
            541,
            "86ea91641ee9e6b8",
            "Apache-2.0",
            "google-research/google-research",
            "UCSB-NLP-Chang/SemanticSmooth: data/google-instruction-following/full_input_data.jsonl"
            " @ de23d1e",
        ),
        KnownFile(
            "harmfulqa",
            "harmfulqa.json",
            "training",
            1960,
            "e04c1f3c48800ea8",
            "Apache-2.0",
            "declare-lab/red-instruct",
            "declare-lab/red-instruct: harmful_questions/harmfulqa.json @ 73c759c",
        ),
        KnownFile(
            "dangerousqa",
            "dangerousqa.json",
            "training",
            200,
            "b40b0193d063cb5d",
            "Apache-2.0",
            "declare-lab/red-instruct",
            "declare-lab/red-instruct: harmful_questions/dangerousqa.json @ 73c759c",
        ),
        KnownFile(
            "alpaca_instructions",
            "alpaca.json",
            "training",
            31323,
            "c4ce1bdc5c9b92ca",
            "CC-BY-NC-4.0",
            "andyrdt/refusal_direction",
            "andyrdt/refusal_direction: dataset/processed/alpaca.json @ 9d852fa",
        ),
    )
}

KNOWN_FOLDERS: dict[str, KnownFolder] = {
    known.name: known
    for known in (
        # With a header line and answers that count from 0, unlike the authors' own files.
        KnownFolder(
            "mmlu",
            ("dev/*_dev.csv", "test/*_test.csv"),
            114,
            14327,
            "705a31481e86fd8c",
            "MIT",
            "hendrycks/test",
            "HaeChan0305/MLILAB-FedLLM: data/mmlu/ @ d92730e",
        ),
    )
}


def sha256(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, as 64 hex digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def data_folder(data_dir: Path | None) -> Path:
    """Where known files are looked for: `data_dir`, else what MOSA_DATA names, else ./data."""
    return data_dir or Path(os.environ.get("MOSA_DATA") or "data").expanduser()


def find(known: KnownFile, folder: Path) -> Path | None:
    """The file anywhere under a folder that has the bytes of `known`, under any name."""
    for path in candidates(known, folder):
        if sha256(path).startswith(known.sha256_prefix):
            return path
    return None


def candidates(known: KnownFile, folder: Path) -> list[Path]:
    """The files under a folder that end as `known` does; its namesakes first, then by size."""
    suffix = Path(known.filename).suffix
    found = [path for path in folder.rglob("*") if path.suffix.lower() == suffix]
    found = [path for path in found if path.is_file()]
    # Names and sizes only say which file to hash first.
    return sorted(found, key=lambda p: (p.name != known.filename, p.stat().st_size, p))


def find_folder(known: KnownFolder, folder: Path) -> Path | None:
    """The folder under (or at) a folder that holds all the files of `known`."""
    for path in (folder, *sorted(folder.rglob("*"))):
        files = files_of(known, path) if path.is_dir() else []
        if len(files) == known.num_files:
            digest = hashlib.sha256()
            for file in files:
                digest.update(file.read_bytes())
            if digest.hexdigest().startswith(known.sha256_prefix):
                return path
    return None


def files_of(known: KnownFolder, folder: Path) -> list[Path]:
    """The files that the parts of `known` name below a folder."""
    return [path for part in known.parts for path in sorted(folder.glob(part))]


def verify(path: str | Path, name: str) -> KnownFile:
    """The registry's entry for `name`, after checking that the file at `path` has its bytes.

    Raises UserError for a name that is not registered, a missing file, or other bytes.
    """
    if name not in KNOWN_FILES:
        raise UserError(f"No known file is called {name}; there are {', '.join(KNOWN_FILES)}.")
    if not Path(path).is_file():
        raise UserError(f"There is no file {path} to compare with {name}; check the path.")
    known, found = KNOWN_FILES[name], sha256(path)
    if not found.startswith(known.sha256_prefix):
        raise UserError(
            f"{path} is not the published {known.filename} of {known.origin}: its SHA-256 "
            f"begins {found[:16]}, not {known.sha256_prefix}; take {known.found_at}."
        )
    return known


def identify(path: str | Path) -> KnownFile | None:
    """The known file that has the bytes of the file at `path`, or None."""
    found = sha256(path)
    return next((k for k in KNOWN_FILES.values() if found.startswith(k.sha256_prefix)), None)
