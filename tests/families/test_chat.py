"""Chat templates, and that what users type stays text."""

from __future__ import annotations

import json

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refuses
from tiny_models import (
    DREAM_SPECIALS,
    LLADA_SPECIALS,
    byte_tokenizer,
    dream_tokenizer,
    llada_tokenizer,
    tiny_dream_config,
    tiny_llada_config,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import AddedToken, PreTrainedTokenizerFast

from mosa.families import load_model, new_model
from mosa.types import Message

LLADA_HEADER = "<|start_header_id|>assistant<|end_header_id|>\n\n"
# What the released LLaDA-8B-Instruct has: the assistant header always follows.
RELEASED_LLADA_TEMPLATE = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'+ "
    "message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}"
    "{{ content }}{% endfor %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}"
)
DIALOGUE = [
    Message("system", "Be brief."),
    Message("user", "  What is tea? "),
    Message("assistant", "Leaves in water."),
    Message("user", "And coffee?"),
]


def llada(tokenizer: PreTrainedTokenizerFast, **fields):
    return new_model(tiny_llada_config(tokenizer, **fields), tokenizer, seed=0)


def shown(model, prompt) -> str:
    return model.decode(model.encode(prompt), skip_special_tokens=False)


# -------------------------------------------------------------------------------------- templates


def test_llada_dialogue_with_system_turn_and_history(tiny_llada):
    assert shown(tiny_llada, DIALOGUE) == (
        "<|startoftext|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWhat is tea?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nLeaves in water.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd coffee?<|eot_id|>" + LLADA_HEADER
    )


def test_dream_dialogue_with_and_without_system_turn(tiny_dream):
    assert shown(tiny_dream, DIALOGUE[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n  What is tea? <|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    assert shown(tiny_dream, "Hi") == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nHi"
        "<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_tokenizers_own_template_goes_before_the_familys(tiny_llada):
    own = byte_tokenizer(
        LLADA_SPECIALS, chat_template="{% for m in messages %}[{{ m['content'] }}]{% endfor %}"
    )
    assert shown(llada(own), "Hi") == "[Hi]"
    without = byte_tokenizer(LLADA_SPECIALS, bos_token="<|startoftext|>")
    assert without.chat_template is None
    assert llada(without).encode(DIALOGUE) == tiny_llada.encode(DIALOGUE)


def test_a_string_is_one_user_turn(tiny_llada, tiny_dream):
    for model in (tiny_llada, tiny_dream):
        assert model.encode("Hi you") == model.encode([Message("user", "Hi you")])


def test_the_released_template_is_the_familys(tiny_llada):
    tokenizer = llada_tokenizer()
    tokenizer.chat_template = RELEASED_LLADA_TEMPLATE
    assert llada(tokenizer).encode(DIALOGUE) == tiny_llada.encode(DIALOGUE)


def test_a_template_that_refuses_a_dialogue(tiny_llada):
    tokenizer = llada_tokenizer()
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with refuses("roles must alternate"):
        llada(tokenizer).encode("Hi")


def test_a_base_model_takes_text_and_no_dialogue():
    """The tokenizer of LLaDA-8B-Base lacks the tokens that turns are made of."""
    tokenizer = byte_tokenizer(LLADA_SPECIALS[:3])
    model = llada(tokenizer)
    assert model.encode("Once upon a time") == model.encode_text("Once upon a time")
    assert model.decode(model.encode("Once upon a time")) == "Once upon a time"
    assert model.end_token_ids == (model.eos_token_id,)
    with refuses("LLaDA", "<|start_header_id|>"):
        model.encode(DIALOGUE)


def test_ordinary_prompts_get_the_tokens_of_apply_chat_template(tiny_llada, tiny_dream):
    for model in (tiny_llada, tiny_dream):
        for content in ("Hi", "a\n\nb", "\nx", "1 < 2 | 3 > 2", "<|eot", "é ☕ 漢"):
            expected = model.tokenizer.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                return_dict=False,
            )
            assert model.encode(content) == expected


# --------------------------------------------------------------------------------- special tokens


def special_ids(model) -> set[int]:
    return {i for i, token in model.tokenizer.added_tokens_decoder.items() if token.special}


def count_special(model, ids) -> list[int]:
    return [i for i in ids if i in special_ids(model)]


def test_typed_mask_and_end_of_turn_stay_text(tiny_llada):
    plain = tiny_llada.encode("tell me")
    for typed in ("<|mdm_mask|>", "<|eot_id|>", "<|endoftext|>", "<|start_header_id|>system"):
        prompt = f"tell {typed} me"
        ids = tiny_llada.encode(prompt)
        assert count_special(tiny_llada, ids) == count_special(tiny_llada, plain)
        assert tiny_llada.mask_token_id not in ids
        assert prompt in tiny_llada.decode(ids)  # nothing is lost either
        text_ids = tiny_llada.encode_text(prompt)
        assert not count_special(tiny_llada, text_ids) and tiny_llada.decode(text_ids) == prompt


def test_every_turn_is_guarded(tiny_llada):
    dialogue = [Message(m.role, m.content + "<|eot_id|><|mdm_mask|>") for m in DIALOGUE]
    ids, plain = tiny_llada.encode(dialogue), tiny_llada.encode(DIALOGUE)
    assert count_special(tiny_llada, ids) == count_special(tiny_llada, plain)


def test_special_tokens_can_be_asked_for(tiny_llada):
    ids = tiny_llada.encode("tell <|mdm_mask|> me", allow_special_tokens=True)
    assert ids.count(tiny_llada.mask_token_id) == 1
    ids = tiny_llada.encode_text("<|mdm_mask|><|mdm_mask|>", allow_special_tokens=True)
    assert ids == [tiny_llada.mask_token_id] * 2


def test_a_token_is_guarded_because_the_model_reserves_it(tiny_llada):
    """A tokenizer may list the mask as an ordinary added token."""
    tokenizer = byte_tokenizer([s for s in LLADA_SPECIALS if s != "<|mdm_mask|>"])
    tokenizer.add_tokens([AddedToken("<|mdm_mask|>", special=False)])
    tokenizer.chat_template = llada_tokenizer().chat_template
    model = llada(tokenizer)
    assert model.mask_token_id not in model.encode("a <|mdm_mask|> b")
    assert model.mask_token_id not in model.encode_text("a <|mdm_mask|> b")


def test_a_tokenizer_that_rewrites_text_into_special_tokens_is_an_error():
    """Full-width letters, normalised, spell a token that is matched after normalisation."""
    tokenizer = llada_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    tokenizer.add_tokens([AddedToken("<|steer|>", special=True, normalized=True)])
    model = llada(tokenizer)
    for encode in (model.encode, model.encode_text):
        with refuses("special tokens"):
            encode("a ＜｜steer｜＞ b")


FRAGMENTS = [*LLADA_SPECIALS, "<", "|", ">", "<|", "|>", "<|eot_id", "mdm_mask|>", " ", "\n", "x"]
FRAGMENTS += ["\U000f0000", "\U000f0001", "{{ bos_token }}", "hello", "é"]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(FRAGMENTS), max_size=9).map("".join))
def test_no_spelling_whatever_yields_a_special_token(tiny_llada, text):
    assert not count_special(tiny_llada, tiny_llada.encode_text(text))
    assert tiny_llada.decode(tiny_llada.encode_text(text)) == text
    ids = tiny_llada.encode([Message("user", text), Message("assistant", text)])
    plain = tiny_llada.encode([Message("user", "x"), Message("assistant", "x")])
    assert count_special(tiny_llada, ids) == count_special(tiny_llada, plain)
    assert tiny_llada.decode(ids).count(text.strip()) >= 2


# ------------------------------------------------------------------------------ ids and tokenizers


def test_ids_come_from_the_config_and_end_tokens_from_the_tokenizer(tiny_llada, tiny_dream):
    assert tiny_llada.tokenizer.mask_token_id is None  # as in the release
    vocabulary = tiny_llada.tokenizer.get_vocab()
    assert tiny_llada.mask_token_id == vocabulary["<|mdm_mask|>"]
    assert tiny_llada.end_token_ids == (vocabulary["<|endoftext|>"], vocabulary["<|eot_id|>"])
    vocabulary = tiny_dream.tokenizer.get_vocab()
    assert tiny_dream.end_token_ids == (vocabulary["<|endoftext|>"], vocabulary["<|im_end|>"])


def test_padding_defaults_to_end_of_text(new_tiny_llada):
    assert new_tiny_llada(pad_token_id=None).pad_token_id == new_tiny_llada().eos_token_id


def test_decode_takes_tensors_and_shows_special_tokens_only_if_asked(tiny_llada):
    ids = torch.tensor([*tiny_llada.encode_text("tea"), tiny_llada.end_token_ids[1]])
    assert tiny_llada.decode(ids) == "tea"
    assert tiny_llada.decode(ids, skip_special_tokens=False) == "tea<|eot_id|>"
    # Rows of the embedding that no token has decode to nothing.
    assert tiny_llada.decode([383]) == ""


def test_a_word_level_tokenizer_needs_no_special_case(tmp_path):
    words = ["user", "assistant", "system", "tell", "me", "how", "make", "amber", "kiln"]
    vocabulary = {w: i for i, w in enumerate([*words, "<|unknown|>", *LLADA_SPECIALS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<|unknown|>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.add_special_tokens(["<|unknown|>", *LLADA_SPECIALS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<|startoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<|unknown|>",
        extra_special_tokens=LLADA_SPECIALS[2:],
    )
    model = llada(tokenizer, vocab_size=len(vocabulary), embedding_size=None)
    model.save(tmp_path)
    model = load_model(tmp_path, device="cpu")
    start, end = vocabulary["<|start_header_id|>"], vocabulary["<|end_header_id|>"]
    user, assistant = vocabulary["user"], vocabulary["assistant"]
    turn = [start, user, end, *model.encode_text("tell me"), vocabulary["<|eot_id|>"]]
    header = [start, assistant, end]
    assert model.encode("tell me") == [vocabulary["<|startoftext|>"], *turn, *header]
    typed = model.encode("tell <|mdm_mask|> me <|eot_id|>")
    assert model.mask_token_id not in typed and typed.count(vocabulary["<|eot_id|>"]) == 1
    assert model.decode(model.encode_text("make amber kiln")) == "make amber kiln"


def test_a_folder_with_vocabulary_and_merges_in_place_of_tokenizer_json(tmp_path):
    """Dream's release has Qwen2's vocab.json and merges.txt, and a tokenizer class of its own."""
    tokenizer = dream_tokenizer()
    model = new_model(tiny_dream_config(tokenizer), tokenizer, seed=0)
    model.save(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in content["model"]["merges"])
    (tmp_path / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    added = {
        str(tokenizer.convert_tokens_to_ids(t)): {"content": t, "special": True, "lstrip": False}
        | {"rstrip": False, "normalized": False, "single_word": False}
        for t in DREAM_SPECIALS
    }
    released = {
        "tokenizer_class": "DreamTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]},
        "added_tokens_decoder": added,
        "bos_token": "<|beginoftext|>",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "mask_token": "<|mask|>",
    }
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(released))
    loaded = load_model(tmp_path, device="cpu")
    assert loaded.end_token_ids == model.end_token_ids
    assert loaded.encode("Tell me how <|mask|> to make tea") == model.encode(
        "Tell me how <|mask|> to make tea"
    )
    loaded.save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "tokenizer_config.json").read_text()) == released
