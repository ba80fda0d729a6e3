"""Chat models: what writes for the attacker and what answers a prompted judge.

Start reading in base.py (the interface). A chat model is named by where it runs:
`http://localhost:8000/v1#MODEL` or `local:FOLDER_OR_HUB_ID`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    UselessRepliesError,
)
from mosa.chat.cache import CachedChat
from mosa.chat.endpoint import EndpointChat
from mosa.chat.local import LocalChat
from mosa.types import UserError


@dataclass(frozen=True)
class ChatOptions:
    """How endpoints are asked."""

    timeout_seconds: float = 120.0
    """Seconds that a chat endpoint has for one reply."""
    max_retries: int = 4
    """Retries of a chat endpoint that fails, is busy or does not answer."""
    num_concurrent: int = 8
    """Requests to a chat endpoint that are under way at once."""
    requests_per_minute: float | None = None
    """Requests to a chat endpoint that may start in a minute; null for no limit."""
    reply_cache: Path | None = None
    """Folder that keeps the replies of chat endpoints, so that other runs and judges need not ask
    again; null keeps none but those in a run's own records."""


def chat_model(
    spec: str,
    options: ChatOptions = ChatOptions(),  # noqa: B008, frozen
    *,
    device: str | None = None,
    batch_size: int = 8,
) -> ChatModel:
    """The chat model that `spec` names: URL#MODEL, or local:FOLDER_OR_HUB_ID.

    `device` and `batch_size` are for local models, `options` for endpoints. Nothing is loaded or
    asked yet. Raises UserError for any other form.
    """
    if spec.startswith(("http://", "https://")) and "#" in spec:
        base_url, _, model = spec.partition("#")
        chat = EndpointChat(
            base_url,
            model,
            timeout_seconds=options.timeout_seconds,
            max_retries=options.max_retries,
            num_concurrent=options.num_concurrent,
            requests_per_minute=options.requests_per_minute,
        )
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
]
