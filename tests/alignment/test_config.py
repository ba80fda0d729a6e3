"""Settings: defaults, presets, YAML, overrides, and the sentences for mistakes."""

from __future__ import annotations

import warnings
from typing import Any, cast

import pytest
import transformers
import yaml
from refusals import refuses

from mosa.alignment import METHODS, AlignConfig, MosaConfig, load_config, presets
from mosa.alignment.config import PRESET_FOLDER, config_dict
from mosa.alignment.output import config_text
from mosa.experiments.methods import FACTORIAL


def class_of(preset: str) -> type[AlignConfig]:
    """The settings of the method that a preset's name begins with."""
    return METHODS[preset.split("_")[0]].trainer_class.config_class


@pytest.mark.parametrize("preset", presets())
def test_every_preset_loads_and_round_trips(preset, tmp_path):
    config = load_config(class_of(preset), preset)
    file = tmp_path / "resolved.yaml"
    file.write_text(config_text(config))
    again = load_config(class_of(preset), file)
    assert config_dict(again) == config_dict(config)
    # YAML holds only our fields or the trainer's; a key that nothing reads would be refused above.
    assert yaml.safe_load((PRESET_FOLDER / f"{preset}.yaml").read_text())


def test_the_paper_preset_is_the_paper():
    """arXiv 2508.12398, Table of hyperparameters; and it is also what MosaConfig defaults to."""
    config = load_config(MosaConfig, "mosa_llada_paper")
    assert (config.window_start, config.window_end) == (20, 60)
    assert (config.start_reduction, config.token_reduction) == ("max", "sum")
    assert config.breaker == "eos" and config.harmful_bound == "none"
    assert config.beta == 0.05 and config.benign_beta == 0.0
    assert (config.lora_r, config.lora_alpha) == (32, 64)
    assert (config.learning_rate, config.max_grad_norm) == (5e-5, 0.01)
    assert config.optim == "adamw_torch" and config.num_train_epochs == 1
    assert not config.uses_contamination and not config.needs
    assert config_dict(config) == config_dict(load_config(MosaConfig))


@pytest.mark.parametrize("size", ["llada", "testbed"])
def test_initial_differs_from_mosa_by_its_window_alone(size):
    mosa = config_dict(load_config(MosaConfig, f"mosa_{size}_paper"))
    initial = config_dict(load_config(MosaConfig, f"initial_{size}_paper"))
    different = {name for name in mosa if mosa[name] != initial[name]}
    assert different == {"window_start", "window_end"}
    assert (initial["window_start"], initial["window_end"]) == (1, None)


def test_ablations_change_one_ingredient_of_a_preset():
    """Each `*_ablate_*` preset differs from the preset in its name by what the file says."""
    names = [name for name in presets() if "_ablate_" in name]
    assert len(names) >= 5
    for name in names:
        base = load_config(MosaConfig, name.split("_ablate_")[0])
        values, base_values = config_dict(load_config(MosaConfig, name)), config_dict(base)
        changed = {key for key in values if values[key] != base_values[key]}
        assert 1 <= len(changed) <= 2, (name, changed)


def test_the_cells_of_the_tables_are_presets_for_llada_too():
    """Each differs from its base as the testbed's does."""

    def changed(name: str) -> dict[str, object]:
        own = config_dict(load_config(MosaConfig, name))
        base = config_dict(load_config(MosaConfig, name.split("_ablate_")[0]))
        return {key: own[key] for key in own if own[key] != base[key]}

    names = {cell.preset for cell in FACTORIAL.values()}
    assert len(names) == 8
    for name in names:
        assert changed(name.replace("testbed", "llada")) == changed(name)
    windows = {"1_40", "10_50", "40_80", "60_100"}
    for window in windows:
        start, end = map(int, window.split("_"))
        found = changed(f"mosa_llada_paper_ablate_window_{window}")
        assert found == {"window_start": start, "window_end": end}


def test_overrides_win_over_the_file(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("beta: 1e-3\nwindow_end: null\nlogging_steps: 5\n")
    config = load_config(MosaConfig, file, {"beta": 2, "lr_scheduler_type": "cosine"})
    assert config.beta == 2.0 and config.window_end is None and config.logging_steps == 5
    assert config_dict(config)["lr_scheduler_type"] == "cosine"
    assert load_config(MosaConfig, file).beta == 1e-3


def test_a_file_holds_what_differs_from_its_base(tmp_path):
    """Through a chain of bases, the nearest value wins; overrides win over all."""
    near, far = tmp_path / "near.yaml", tmp_path / "far.yaml"
    far.write_text("base: mosa_llada_robust\nbeta: 0.2\nanswer_margin: 3\n")
    near.write_text(f"base: {far}\nbeta: 0.3\nwindow_end: null\n")
    config = load_config(MosaConfig, near, {"lora_r": 4})
    assert (config.beta, config.answer_margin, config.benign_beta) == (0.3, 3.0, 0.5)
    assert config.window_end is None and config.lora_r == 4
    far.write_text(f"base: {near}\n")
    with refuses("base"):
        load_config(MosaConfig, near)
    with refuses("base", "files"):
        load_config(MosaConfig, None, {"base": "mosa_llada_paper"})


def test_a_trainer_field_that_we_do_not_document_is_accepted_and_recorded():
    config = load_config(MosaConfig, None, {"adam_epsilon": 1e-6})
    assert config.adam_epsilon == 1e-6 and config_dict(config)["adam_epsilon"] == 1e-6
    assert "adam_epsilon" not in config_dict(MosaConfig())


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("bta: 0.1\n", ("mine.yaml", "bta")),
        ("beta: much\n", ("mine.yaml", "beta", "much")),
        ("breaker: bang\n", ("mine.yaml", "breaker", "bang")),
        ("window_start: [1\n", ("mine.yaml",)),
        ("window_start: 0\n", ("window_start", 0)),
        ("window_end: 10\n", ("window_end", 10, "window_start")),
        ("response_length: 50\n", ("window_end", 60, "response_length")),
        ("beta: -1\n", ("beta", -1.0)),
        ("lora_r: 0\n", ("lora_r", 0)),
        ("fully_masked_weight: 0\n", ("fully_masked_weight", 0)),
        ("{breaker: fill, window_end: null}\n", ("breaker", "window_end")),
        ("lr_scheduler_type: zigzag\n", ("zigzag",)),
        ("optim: wishes\n", ("wishes",)),
    ],
)
def test_a_mistake_is_one_sentence_that_names_it(tmp_path, text, names):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with refuses(*names):
        load_config(MosaConfig, file)


def test_an_unknown_preset_lists_the_known_ones():
    with refuses("nope", "mosa_llada_paper"):
        load_config(MosaConfig, "nope")


def test_every_setting_is_used_by_a_preset():
    """Options are few: each own setting of a method has, in some preset, another value than its
    default, or is one of those that recorded experiments set (LOG.md, docs/paper_index.md)."""
    recorded = {"anchor_end", "anchor_start", "harmful_margin", "kl_reduction", "segment"}
    for method in METHODS.values():
        config_class = method.trainer_class.config_class
        own = set(config_class.__annotations__) - {"max_grad_norm"}
        used = set()
        for name in presets():
            if class_of(name) is config_class:
                used |= set(yaml.safe_load((PRESET_FOLDER / f"{name}.yaml").read_text()))
        assert own - used - recorded <= {"full_mask_share", "length_multiple", "refusals"}


@pytest.mark.parametrize(
    ("window", "space"),
    [((20, 60), "with"), ((1, None), "without"), ((1, 41), "both"), ((5, None), "with")],
)
def test_a_phrase_has_its_space_unless_it_begins_the_answer(window, space):
    start, end = window
    config = MosaConfig(window_start=start, window_end=end, use_cpu=True)
    assert config.leading_space == space


@pytest.mark.parametrize("name", ["activation_checkpointing", "gradient_checkpointing"])
def test_checkpointing_by_either_of_its_names(name):
    """Releases of transformers differ in the name; the settings are the same, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = load_config(MosaConfig, overrides={name: True, "use_cpu": True})
        off = load_config(MosaConfig, overrides={"use_cpu": True})
    assert config.activation_checkpointing and config.gradient_checkpointing
    assert config_dict(config)["activation_checkpointing"] is True
    assert not off.activation_checkpointing and not off.gradient_checkpointing


@pytest.mark.parametrize(
    "setting",
    [
        {"report_to": "wandb"},
        {"report_to": "nothing"},
        {"eval_strategy": "steps"},
        {"save_strategy": "best"},
        {"save_total_limit": 0},
        {"save_only_model": True},
        {"learning_rate": -1.0},
        {"learning_rate": float("nan")},
        {"weight_decay": float("inf")},
        {"adam_beta1": 1.0},
        {"per_device_train_batch_size": 0},
        {"gradient_accumulation_steps": 0},
        {"seed": -1},
        {"seed": 2**32},
        {"max_steps": 0},
        {"num_train_epochs": 0.0},
        {"lora_alpha": 0},
        {"push_to_hub": True},
        {"use_liger_kernel": True},
    ],
    ids=str,
)
def test_a_setting_that_no_training_can_have_is_named(setting):
    changed: dict[str, Any] = setting
    with refuses(*setting):
        MosaConfig(use_cpu=True, **changed)


def test_what_transformers_cannot_build_is_a_users_matter():
    for setting in ({"deepspeed": "missing.json"}, {"load_best_model_at_end": True}):
        with refuses("training setting"):
            MosaConfig(use_cpu=True, **cast("dict[str, Any]", setting))


def test_a_setting_that_is_refused_leaves_nothing_behind():
    """transformers keeps a DeepSpeed config that it could not read, and loads models by it."""
    with refuses("training setting"):
        MosaConfig(use_cpu=True, deepspeed="missing.json")
    assert transformers.integrations.deepspeed.is_deepspeed_zero3_enabled() is False


def test_no_key_is_written_beside_an_adapter():
    with refuses("hub_token"):
        MosaConfig(use_cpu=True, hub_token="hf_secret")
