"""One hash of everything that is loaded: what moves it, and what does not."""

from __future__ import annotations

import json
import os

import pytest
import torch
from peft import LoraConfig

from mosa.families import DiffusionLM, load_model
from mosa.provenance import PACKAGES, folder_hash, versions


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """An adapter on the testbed with weights that are not zero."""
    model = load_model("testbed")
    model.add_lora(LoraConfig(r=2, lora_alpha=4))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.network.named_parameters():
            if "lora_B" in name:
                tensor.normal_()
    folder = tmp_path_factory.mktemp("adapter")
    model.save_adapter(folder)
    return folder


def edited(file, **fields) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_equal_models_have_one_hash():
    """Loaded twice, and after it was used: padding and truncation of the last call are no part."""
    model = load_model("testbed")
    before = model.content_hash()
    assert load_model("testbed").content_hash() == before
    assert model.tokenizer is not None
    model.tokenizer(["how", "how do i"], padding=True, truncation=True, max_length=2)
    assert model.content_hash() == before
    assert load_model("testbed:helpful").content_hash() != before


def test_every_number_of_every_tensor_counts():
    """The last number of each tensor lies behind the first 4,096 of all but the small ones."""
    model = load_model("testbed")
    hashes = {model.content_hash()}
    tensors = list(model.network.state_dict().values())
    assert max(tensor.numel() for tensor in tensors) > 4096
    for tensor in tensors:
        tensor.flatten()[-1] += 1
        hashes.add(model.content_hash())
    assert len(hashes) == 1 + len({tensor.data_ptr() for tensor in tensors})


def test_what_changes_no_weight_counts_too():
    def changed(**fields) -> DiffusionLM:
        model = load_model("testbed")
        model.config |= fields
        return model

    plain = changed().content_hash()
    notes = {"transformers_version": "0", "_name_or_path": "x", "torch_dtype": "float16"}
    assert changed(**notes).content_hash() == plain
    template = load_model("testbed")
    assert template.tokenizer is not None
    template.tokenizer.chat_template = f"{template.tokenizer.chat_template} "
    word = load_model("testbed")
    assert word.tokenizer is not None
    word.tokenizer.add_tokens(["mosa"])
    others = [
        changed(rope_theta=1.0),
        load_model("testbed", dtype="bfloat16"),
        template,
        word,
    ]
    assert len({plain, *(other.content_hash() for other in others)}) == 5


def test_an_adapters_config_counts_and_its_notes_do_not(saved):
    """lora_alpha scales what the weights do."""
    file = saved / "adapter_config.json"
    before = file.read_text()

    def key() -> str:
        return load_model("testbed", adapter=saved).content_hash()

    try:
        plain = key()
        edited(file, peft_version="0", base_model_name_or_path="elsewhere", revision="main")
        assert key() == plain
        edited(file, lora_alpha=64)
        other = key()
        assert plain != other
    finally:
        file.write_text(before)
    assert load_model("testbed").content_hash() not in (plain, other)


def test_a_file_that_changes_within_a_tick_of_the_clock_is_read_again(tmp_path):
    """Same size, same inode, and the same time of change: a recent file is never kept."""
    file = tmp_path / "model.safetensors"
    hashes = set()
    for content in (b"4", b"1"):
        file.write_bytes(content)
        now = file.stat().st_mtime_ns
        hashes.add(folder_hash(tmp_path))
        os.utime(file, ns=(now, now))
    assert len(hashes) == 2


def test_versions_name_every_package():
    found = versions()
    assert found.keys() == {"python", "git_commit", *PACKAGES}
    assert found["torch"] is not None and found["torch"].split("+")[0] == "2.13.0"
