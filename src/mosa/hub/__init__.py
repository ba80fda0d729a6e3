"""What comes in a checkpoint's folder, read for targets and chat models alike.

Folders and hub ids (folders.py), tensors (weights.py), tokenizers and chat templates (text.py),
LoRA adapters (adapters.py), and whether scores choose a token (scores.py). Nothing of theirs is
unpickled or trusted; what may never come back runs in a process of its own (bounded.py). Each fault
is a UserError that names the file.
"""

from mosa.hub.adapters import adapter_settings, peft_asking_quietly, read_adapter
from mosa.hub.bounded import faults_of
from mosa.hub.folders import locate
from mosa.hub.scores import chooses_nothing
from mosa.hub.text import (
    Refused,
    chat_template,
    check_words,
    read_tokenizer,
    rendered,
    token_ids,
)
from mosa.hub.weights import Weights

__all__ = [
    "Refused",
    "Weights",
    "adapter_settings",
    "chat_template",
    "check_words",
    "chooses_nothing",
    "faults_of",
    "locate",
    "peft_asking_quietly",
    "read_adapter",
    "read_tokenizer",
    "rendered",
    "token_ids",
]
