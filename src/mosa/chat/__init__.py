"""Chat models: what writes for the attacker and what stands behind a prompted judge.

Start reading in base.py (the interface). A chat model is named by where it runs:
`http://localhost:8000/v1#MODEL` or `local:FOLDER_OR_HUB_ID`.
"""

from __future__ import annotations

from mosa.chat.base import ChatError, ChatModel, ChatReply, ChatRequest
from mosa.chat.endpoint import EndpointChat
from mosa.chat.local import LocalChat
from mosa.types import UserError


def chat_model(
    spec: str,
    *,
    device: str | None = None,
    batch_size: int = 8,
    timeout_seconds: float = 120.0,
    max_retries: int = 4,
    num_concurrent: int = 8,
    requests_per_minute: float | None = None,
) -> ChatModel:
    """The chat model that `spec` names: URL#MODEL, or local:FOLDER_OR_HUB_ID.

    `device` and `batch_size` are for local models, the rest for endpoints. Nothing is loaded or
    asked yet. Raises UserError for any other form.
    """
    if spec.startswith(("http://", "https://")) and "#" in spec:
        base_url, _, model = spec.partition("#")
        return EndpointChat(
            base_url,
            model,
            timeout_seconds=timeout_seconds,
            max_retries=max_retries,
            num_concurrent=num_concurrent,
            requests_per_minute=requests_per_minute,
        )
    if spec.startswith("local:") and spec != "local:":
        return LocalChat(spec.removeprefix("local:"), device=device, batch_size=batch_size)
    raise UserError(
        "A chat model is written as URL#MODEL (for example http://localhost:8000/v1#qwen3) or as "
        "local:FOLDER_OR_HUB_ID; the one given has neither form."
    )


__all__ = [
    "ChatError",
    "ChatModel",
    "ChatReply",
    "ChatRequest",
    "EndpointChat",
    "LocalChat",
    "chat_model",
]
