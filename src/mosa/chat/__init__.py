"""Chat models: what writes for the attacker and what answers a prompted judge.

Start reading in base.py (the interface). A chat model is named by where it runs:
`http://localhost:8000/v1#MODEL` or `local:FOLDER_OR_HUB_ID`.
"""

from __future__ import annotations

from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    UselessRepliesError,
)
from mosa.chat.cache import CachedChat
from mosa.chat.endpoint import ChatOptions, EndpointChat, key_variables
from mosa.chat.local import LocalChat
from mosa.types import UserError


def chat_model(
    spec: str,
    options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
    *,
    role: str | None = None,
    device: str | None = None,
    batch_size: int = 8,
) -> ChatModel:
    """The chat model that `spec` names: URL#MODEL, or local:FOLDER_OR_HUB_ID.

    `role` says whose key an endpoint gets (endpoint.py). `device` and `batch_size` are for local
    models, `options` for endpoints. Nothing is loaded or asked yet. Raises
    UserError for any other form.
    """
    if spec.startswith(("http://", "https://")) and "#" in spec:
        base_url, _, model = spec.partition("#")
        chat = EndpointChat(base_url, model, options, role=role)
        return chat if options.reply_cache is None else CachedChat(chat, options.reply_cache)
    if spec.startswith("local:") and spec != "local:":
        return LocalChat(spec.removeprefix("local:"), device=device, batch_size=batch_size)
    raise UserError(
        "A chat model is written as URL#MODEL (for example http://localhost:8000/v1#qwen3) or as "
        "local:FOLDER_OR_HUB_ID; the one given has neither form."
    )


__all__ = [
    "CachedChat",
    "ChatError",
    "ChatModel",
    "ChatOptions",
    "ChatReply",
    "ChatRequest",
    "EndpointChat",
    "LocalChat",
    "UselessRepliesError",
    "chat_model",
    "key_variables",
]
