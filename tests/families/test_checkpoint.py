"""Checkpoint folders: what comes back from them, and the sentence for each way to be wrong."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from refusals import refuses
from safetensors.torch import load_file, save_file
from tiny_models import byte_tokenizer, llada_tokenizer, tiny_llada_config

from mosa.families import ALIASES, load_model, new_model
from mosa.hub import folders
from mosa.hub.weights import Weights

IDS = torch.tensor([[5, 9, 200, 17, 3, 44]])


@pytest.fixture
def folder(tiny_llada, tmp_path) -> Path:
    """A released-layout folder to spoil."""
    tiny_llada.save(tmp_path / "released")
    return tmp_path / "released"


def edit_config(folder: Path, **fields):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in config.items() if v != "absent"}))


def edit_tensors(folder: Path, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


# ------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("name", ["tiny_llada", "tiny_dream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_changes_no_bit(request, name, dtype, tmp_path):
    model = request.getfixturevalue(name)
    model.save(tmp_path / "a")
    once = load_model(tmp_path / "a", dtype=dtype, device="cpu")
    once.save(tmp_path / "b")
    twice = load_model(tmp_path / "b", device="cpu")
    assert twice.dtype == dtype
    for (n, x), (m, y) in zip(
        once.network.state_dict().items(), twice.network.state_dict().items(), strict=True
    ):
        assert n == m and torch.equal(x, y)
    assert torch.equal(once.logits(IDS), twice.logits(IDS))
    assert once.config == twice.config == model.config
    for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_the_released_names_are_written(folder):
    names = set(load_file(folder / "model.safetensors"))
    assert len(names) == 3 + 2 * 9
    assert {
        "model.transformer.wte.weight",
        "model.transformer.ln_f.weight",
        "model.transformer.ff_out.weight",
        "model.transformer.blocks.1.ff_out.weight",
        "model.transformer.blocks.0.attn_out.weight",
        "model.transformer.blocks.0.ff_norm.weight",
    } < names


def test_weights_that_the_disk_refuses_are_a_users_matter(tiny_llada, tmp_path):
    """A limit on the size of files stands for a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 10, hard))
    try:
        with refuses(tmp_path / "saved"):
            tiny_llada.save(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_shards_are_written_and_read(tiny_llada, tmp_path):
    tiny_llada.save(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("model-0*.safetensors"))) > 1
    assert not (tmp_path / "model.safetensors").exists()
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(index["weight_map"]) == 21
    assert torch.equal(load_model(tmp_path, device="cpu").logits(IDS), tiny_llada.logits(IDS))


def test_a_single_file_written_over_shards_is_what_is_read(tiny_llada, new_tiny_llada, tmp_path):
    tiny_llada.save(tmp_path, max_shard_size="40KB")
    other = new_tiny_llada(seed=3)
    other.save(tmp_path)
    assert torch.equal(load_model(tmp_path, device="cpu").logits(IDS), other.logits(IDS))
    tiny_llada.save(tmp_path, max_shard_size="40KB")
    assert torch.equal(load_model(tmp_path, device="cpu").logits(IDS), tiny_llada.logits(IDS))


def test_a_folder_can_be_written_over_while_its_model_is_in_use(folder):
    model = load_model(folder, device="cpu")
    before = model.logits(IDS)
    with torch.no_grad():
        model.network.lm_head.weight.mul_(2)
    model.save(folder)
    assert torch.equal(model.logits(IDS), before * 2)
    assert torch.equal(load_model(folder, device="cpu").logits(IDS), before * 2)


def test_tied_grouped_heads_keep_one_matrix(new_tiny_llada, tmp_path):
    model = new_tiny_llada(n_kv_heads=1, weight_tying=True)
    model.save(tmp_path)
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "model.safetensors")
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.network.lm_head.weight is loaded.network.model.embed_tokens.weight
    assert loaded.mask_token_id == model.mask_token_id
    assert torch.equal(loaded.logits(IDS), model.logits(IDS))


@pytest.mark.parametrize("fields", [{"new_vocab_size": 448}, {"embedding_size": 448}])
def test_a_vocabulary_larger_than_the_text_tokens(new_tiny_llada, tmp_path, fields):
    model = new_tiny_llada(model_type="mmada", vocab_size=384, **fields)
    assert model.vocab_size == 448
    model.save(tmp_path)
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.logits(IDS).shape == (1, 6, 448)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "mmada"


def test_unknown_fields_are_kept_and_defaults_written_out(tiny_llada, folder, tmp_path):
    edit_config(folder, codebook_size=8192, flash_attention=False, init_fn="mitchell")
    load_model(folder, device="cpu").save(tmp_path / "again")
    saved = json.loads((tmp_path / "again" / "config.json").read_text())
    assert saved["codebook_size"] == 8192 and saved["init_fn"] == "mitchell"
    # The released code reads absent fields as GPT-2's, so every field that matters is there.
    assert saved["block_type"] == "llama" and saved["rope"] is True
    assert saved["architectures"] == ["LLaDAModelLM"]


def test_companion_files_travel_unchanged(folder, tmp_path):
    (folder / "generation_config.json").write_text('{"mask_token_id": null}')
    (folder / "modeling_llada.py").write_text("raise SystemExit('never run')")
    load_model(folder, device="cpu").save(tmp_path / "again")
    assert (tmp_path / "again" / "generation_config.json").read_text() == '{"mask_token_id": null}'
    assert not (tmp_path / "again" / "modeling_llada.py").exists()


def test_a_folder_without_tokenizer_takes_and_gives_token_ids(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    model = load_model(folder, device="cpu")
    assert model.tokenizer is None
    assert model.logits(IDS).shape == (1, 6, 384)
    assert model.end_token_ids == (model.eos_token_id,)
    for call in (
        lambda: model.encode("Hi"),
        lambda: model.encode_text("Hi"),
        lambda: model.decode([1]),
    ):
        with refuses(folder, "tokenizer"):
            call()


def test_loading_holds_one_copy_of_the_weights(folder, monkeypatch):
    """The network is given the very tensors that were read, and nothing is initialised before."""
    read = {}
    original = Weights.each

    def recorded(*args, **kwargs):
        for name, tensor in original(*args, **kwargs):
            read[name] = tensor
            yield name, tensor

    monkeypatch.setattr(Weights, "each", recorded)
    model = load_model(folder, device="cpu")
    pointers = {tensor.data_ptr() for tensor in read.values()}
    assert {p.data_ptr() for p in model.network.parameters()} == pointers
    assert all(not buffer.is_meta for buffer in model.network.buffers())


def test_same_seed_same_model_and_the_global_generator_is_left_alone():
    config = tiny_llada_config(llada_tokenizer())
    state = torch.get_rng_state()
    a, b, c = (new_model(config, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(a.logits(IDS), b.logits(IDS))
    assert not torch.equal(a.logits(IDS), c.logits(IDS))


def test_rotary_frequencies_stay_exact_in_bfloat16(folder):
    """Rounded to bfloat16 they would shift every position; only the weights are rounded."""
    config = tiny_llada_config(llada_tokenizer())
    exact = new_model(config, seed=0).network.model.rotary_emb.inv_freq
    for model in (
        new_model(config, seed=0, dtype=torch.bfloat16),
        load_model(folder, dtype=torch.bfloat16, device="cpu"),
    ):
        assert model.dtype == torch.bfloat16
        assert torch.equal(model.network.model.rotary_emb.inv_freq, exact)


def test_the_end_of_text_embedding_is_trained_though_it_is_the_padding_too(new_tiny_llada):
    model = new_tiny_llada()
    assert model.pad_token_id == model.eos_token_id
    model.logits(torch.tensor([[model.eos_token_id, 7]])).sum().backward()
    gradient = model.network.get_input_embeddings().weight.grad
    assert gradient[model.eos_token_id].abs().sum() > 0


def test_aliases_name_folders_of_the_package(folder, monkeypatch, tmp_path):
    assert set(ALIASES) == {"testbed", "testbed:helpful", "testbed:block"}
    assert all(not Path(path).is_absolute() for path in ALIASES.values())
    monkeypatch.setitem(ALIASES, "here", str(folder))  # an absolute path replaces the package's
    assert load_model("here", device="cpu").source == "here"
    monkeypatch.setitem(ALIASES, "gone", "testbed/checkpoints/gone")
    with refuses("gone", "mosa testbed build"):
        load_model("gone")


# ----------------------------------------------------------------------------------- the hub


def test_a_hub_id_is_fetched_without_code_and_its_auto_map_points_back(
    folder, monkeypatch, tmp_path
):
    edit_config(folder, auto_map={"AutoModel": "modeling_llada.LLaDAModelLM"})
    asked = {}

    def snapshot_download(name, *, revision, allow_patterns):
        asked.update(name=name, revision=revision, allow_patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr(folders, "snapshot_download", snapshot_download)
    model = load_model("GSAI-ML/LLaDA-8B-Instruct", revision="abc", device="cpu")
    assert asked["name"] == "GSAI-ML/LLaDA-8B-Instruct" and asked["revision"] == "abc"
    assert not any("py" in p or "bin" in p or p == "*" for p in asked["allow_patterns"])
    assert model.config["auto_map"] == {
        "AutoModel": "GSAI-ML/LLaDA-8B-Instruct--modeling_llada.LLaDAModelLM"
    }


def test_offline_and_not_downloaded(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with refuses("some/model"):
        load_model("some/model")


# ---------------------------------------------------------------------------- what can be wrong


def test_one_sentence_for_each_wrong_name(tmp_path):
    (tmp_path / "file").touch()
    cases = {
        str(tmp_path / "nowhere"): [tmp_path / "nowhere"],
        "nowhere": ["folder nowhere"],
        "./a/b/c": ["./a/b/c"],
        str(tmp_path / "file"): [tmp_path / "file"],
        str(tmp_path): [tmp_path, "config.json"],
    }
    for name, names in cases.items():
        with refuses(*names):
            load_model(name)
    with refuses("folder a/b"):
        load_model(Path("a/b"))  # a path is never taken for a hub id


UNSUPPORTED = [
    {"alibi": True},
    {"clip_qkv": 8.0},
    {"attention_layer_norm": True},
    {"scale_logits": True},
    {"layer_norm_type": "default"},
    {"activation_type": "gelu"},
    {"rope": False},
    {"rope_full_precision": False},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"include_bias": True},
    {"include_qkv_bias": True},
    {"bias_for_layer_norm": True},
    {"block_type": "sequential"},
    {"block_group_size": 2},
    {"input_emb_norm": True},
    {"layer_norm_with_affine": False},
    {"multi_query_attention": True},
    {"attention_dropout": 0.1},
    {"residual_dropout": 0.1},
    {"embedding_dropout": 0.1},
]


@pytest.mark.parametrize("field", UNSUPPORTED, ids=lambda field: next(iter(field)))
def test_unsupported_config_fields_are_named(field, folder):
    edit_config(folder, **field)
    name = next(iter(field))
    with refuses("config.json", f"{name}={field[name]!r}"):
        load_model(folder)


@pytest.mark.parametrize(
    "field",
    [
        {"architectures": ["DreamForCausalLM"]},
        {"hidden_act": "gelu"},
        {"use_sliding_window": True},
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"use_mrope": True},
        {"attention_dropout": 0.1},
    ],
    ids=lambda field: next(iter(field)),
)
def test_unsupported_fields_of_the_shifted_family(field, tiny_dream, tmp_path):
    tiny_dream.save(tmp_path)
    edit_config(tmp_path, **field)
    name = next(iter(field))
    with refuses("config.json", f"{name}={field[name]!r}"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"model_type": "llama"}, ("model_type", "llama", "llada")),
        ({"model_type": "absent"}, ("model_type", None)),
        ({"mask_token_id": "absent"}, ("mask_token_id",)),
        ({"mask_token_id": None}, ("mask_token_id",)),
        ({"mask_token_id": 384}, ("mask_token_id=384",)),
        ({"mask_token_id": -1}, ("mask_token_id=-1",)),
        ({"mask_token_id": "5"}, ("mask_token_id='5'",)),
        ({"eos_token_id": 999}, ("eos_token_id=999",)),
        ({"pad_token_id": 999}, ("pad_token_id=999",)),
        ({"d_model": "absent"}, ("d_model",)),
        ({"d_model": "wide"}, ("d_model='wide'",)),
        ({"n_layers": 0}, ("n_layers=0",)),
        ({"n_heads": 5}, ("n_heads=5",)),
        ({"n_kv_heads": 3}, ("n_kv_heads=3",)),
        ({"rope_theta": "big"}, ("rope_theta='big'",)),
        ({"weight_tying": "no"}, ("weight_tying='no'",)),
        ({"embedding_size": 300, "vocab_size": 300}, ("shape", [384, 32], [300, 32])),
        ({"n_layers": 3}, ("model.transformer.blocks.2",)),
        ({"n_layers": 1}, ("model.transformer.blocks.1",)),
        ({"weight_tying": True}, ("model.transformer.ff_out.weight",)),
    ],
    ids=lambda value: (
        "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_configs_that_cannot_be_loaded(fields, names, folder):
    edit_config(folder, **fields)
    with refuses("config.json", *names):
        load_model(folder)


def test_a_fractional_epsilon_of_the_wrong_kind_is_named(folder):
    edit_config(folder, rms_norm_eps=None)
    with refuses("config.json", "rms_norm_eps"):
        load_model(folder)


@pytest.mark.parametrize("content", ["{", "[1]", "\x00", '"text"'])
def test_a_corrupt_config(content, folder):
    (folder / "config.json").write_text(content)
    with refuses(folder / "config.json"):
        load_model(folder)


def test_missing_extra_and_misshapen_tensors(folder):
    key = "model.transformer.blocks.0.attn_out.weight"
    edit_tensors(folder, lambda tensors: tensors.update({key: torch.zeros(31, 32)}))
    with refuses(key, "[31, 32]", "[32, 32]"):
        load_model(folder)
    edit_tensors(folder, lambda tensors: tensors.pop(key))
    with refuses(folder, key):
        load_model(folder)
    new = {key: torch.zeros(32, 32), "model.transformer.blocks.0.q_proj.bias": torch.zeros(32)}
    edit_tensors(folder, lambda tensors: tensors.update(new))
    with refuses(folder, "model.transformer.blocks.0.q_proj.bias"):
        load_model(folder)


def test_quantised_tensors(folder):
    key = "model.transformer.wte.weight"
    edit_tensors(folder, lambda tensors: tensors.update({key: tensors[key].to(torch.int8)}))
    with refuses(key, "I8"):
        load_model(folder)


def test_pickled_weights_are_refused(folder):
    (folder / "model.safetensors").unlink()
    with refuses(folder, "model.safetensors"):
        load_model(folder)
    torch.save({}, folder / "pytorch_model.bin")
    with refuses(folder, "pickle"):
        load_model(folder)


def test_a_unusable_weight_file(folder):
    (folder / "model.safetensors").write_bytes(b"<html>not found</html>")
    with refuses(folder / "model.safetensors"):
        load_model(folder)


def test_shards_that_are_not_all_there(tiny_llada, tmp_path):
    tiny_llada.save(tmp_path, max_shard_size="40KB")
    sorted(tmp_path.glob("model-0*.safetensors"))[0].unlink()
    with refuses(tmp_path, "model-00001-of-00004.safetensors"):
        load_model(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with refuses("model.safetensors.index.json", "weight_map"):
        load_model(tmp_path)


def test_a_tokenizer_of_another_model(folder):
    words = [f"<|extra{i}|>" for i in range(60)]
    byte_tokenizer(words).save_pretrained(folder)
    with refuses(folder, "tokenizer", "384"):
        load_model(folder)


def test_a_unusable_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")
    with refuses(folder / "tokenizer.json"):
        load_model(folder)
    (folder / "tokenizer.json").unlink()
    with refuses(folder, "tokenizer.json"):
        load_model(folder)


def test_wrong_arguments(folder):
    with refuses("dtype", "float8"):
        load_model(folder, dtype="float8")
    with refuses("attention", "nonsense"):
        load_model(folder, attn_implementation="nonsense")
    with refuses("device", "gpu"):
        load_model(folder, device="gpu")
