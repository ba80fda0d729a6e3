"""The main job as a new user does it, from the command line alone: align, merge, load, generate.

At toy size: a checkpoint in LLaDA's layout with random weights, a byte-level BPE tokenizer trained
on the prompts, with LLaDA's special tokens and chat template, and the paper's own preset.
"""

import json
import os
import re
import subprocess
import sys

import pytest
import safetensors.torch
from tiny_models import LLADA_SPECIALS, byte_tokenizer
from transformers import PreTrainedTokenizerFast

from mosa.alignment import read_phrases
from mosa.families import load_model, new_model

pytestmark = pytest.mark.integration

# Harmless stand-ins in the nested layout of HarmfulQA: what the job reads is the file's form.
PROMPTS = {
    "Kitchen": {
        "Bread": ["How do I bake bread without an oven?", "Which flour makes the best crust?"],
        "Tea": ["How long should green tea steep?", "Why does tea turn bitter?"],
    },
    "Garden": {"Roses": ["When do I cut my roses?", "How do I keep aphids off my roses?"]},
}
ADVBENCH_LIKE = (
    "goal,target\n"
    '"Write a plan for a herb garden, step by step","Sure, here is a plan"\n'
    'Explain how a compost heap works,"Sure, here is how"\n'
)
CHAT_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)


def bpe_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on the texts, special tokens last, as LLaDA's are."""
    return byte_tokenizer(
        LLADA_SPECIALS,
        texts=texts,
        vocab_size=600,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
    )


def mosa(*argv: str, cwd) -> subprocess.CompletedProcess:
    """One command in a process of its own, as a user runs it; fails with what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "mosa", *argv],
        cwd=cwd,
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the checkpoint, the prompts and the rows to answer, and all commands run."""
    folder = tmp_path_factory.mktemp("job")
    (folder / "prompts.json").write_text(json.dumps(PROMPTS))
    (folder / "advbench.csv").write_text(ADVBENCH_LIKE)
    texts = [prompt for topic in PROMPTS.values() for row in topic.values() for prompt in row]
    texts += [*read_phrases("refusals"), *read_phrases("continuations")]
    tokenizer = bpe_tokenizer(texts)
    vocabulary = tokenizer.get_vocab()
    config = {
        "model_type": "llada",
        "d_model": 64,
        "n_heads": 4,
        "n_kv_heads": 4,
        "n_layers": 2,
        "mlp_hidden_size": 128,
        "max_sequence_length": 512,
        "vocab_size": len(tokenizer),
        "embedding_size": len(tokenizer),
        "mask_token_id": vocabulary["<|mdm_mask|>"],
        "eos_token_id": vocabulary["<|endoftext|>"],
        "pad_token_id": vocabulary["<|endoftext|>"],
    }
    new_model(config, tokenizer, seed=0).save(folder / "model")
    mosa(
        *("align", "mosa", "--config", "mosa_llada_paper", "--model", "model"),
        *("--data", "prompts.json", "--out", "adapter"),
        *("--learning_rate", "0.01", "--logging_steps", "1"),
        cwd=folder,
    )
    mosa("merge", "--model", "model", "--adapter", "adapter", "--out", "merged", cwd=folder)
    mosa(
        *("generate", "--model", "merged", "--data", "advbench.csv", "--out", "responses.jsonl"),
        *("--max_new_tokens", "32", "--steps", "16"),
        cwd=folder,
    )
    return folder


def test_one_epoch_saw_every_prompt_once(folder):
    lines = (folder / "adapter" / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(line)["step"] for line in lines if "reward" in line]
    assert steps == [1, 2, 3, 4, 5, 6]


def test_reward_rose(folder):
    lines = (folder / "adapter" / "metrics.jsonl").read_text().splitlines()
    rewards = [row["reward"] for row in map(json.loads, lines) if "reward" in row]
    # Each step draws its own phrases, so single steps do not compare.
    assert sum(rewards[3:]) > sum(rewards[:3])


def test_adapter_folder_explains_itself(folder):
    """A PEFT folder with settings, phrases, versions and a card beside the weights."""
    names = {path.name for path in (folder / "adapter").iterdir()}
    wanted = {"adapter_config.json", "adapter_model.safetensors", "config.yaml", "versions.json"}
    assert wanted | {"README.md", "phrases", "metrics.jsonl"} <= names


def test_merged_checkpoint_is_released_layout_and_moved(folder):
    """The names of the checkpoint it came from; other numbers in the seven projections alone."""
    before = safetensors.torch.load_file(folder / "model" / "model.safetensors")
    after = safetensors.torch.load_file(folder / "merged" / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not before[name].equal(after[name])}
    adapted = re.compile(
        r"blocks\.\d\.(q_proj|k_proj|v_proj|attn_out|ff_proj|up_proj|ff_out)\.weight"
    )
    assert moved == {name for name in before if adapted.search(name)}
    assert len(moved) == 2 * 7


def test_merged_equals_adapter_on_model(folder):
    """Logits of the merged checkpoint are those of the model with its adapter, to rounding."""
    import torch

    ids = torch.tensor([[1, 2, 3, 4]])
    merged = load_model(folder / "merged").logits(ids)
    adapted = load_model(folder / "model", adapter=folder / "adapter").logits(ids)
    torch.testing.assert_close(merged, adapted, atol=2e-5, rtol=1e-4)


def test_responses_are_recorded(folder):
    records = [json.loads(line) for line in (folder / "responses.jsonl").open()]
    asked = [record["prompt"][0]["content"] for record in records]
    assert asked == [
        "Write a plan for a herb garden, step by step",
        "Explain how a compost heap works",
    ]
    assert all(record["decoder"]["max_new_tokens"] == 32 for record in records)
    assert not any("<|mdm_mask|>" in record["response_full"] for record in records)
