"""Chat models: what writes for the attacker and what answers a prompted judge.

Start reading in base.py (the interface). A chat model is named by where it runs:
`http://localhost:8000/v1#MODEL` or `local:FOLDER_OR_HUB_ID`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from mosa.chat.address import NO_KEY, is_this_machine, key_variables
from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    UselessRepliesError,
)
from mosa.chat.cache import CachedChat
from mosa.chat.endpoint import ChatOptions, EndpointChat
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
    base_url, mark, model = spec.partition("#")
    if "://" in base_url and mark:
        chat = EndpointChat(base_url, model, options, role=role)
        return chat if options.reply_cache is None else CachedChat(chat, options.reply_cache)
    if spec.startswith("local:") and spec != "local:":
        return LocalChat(spec.removeprefix("local:"), device=device, batch_size=batch_size)
    raise UserError(
        "A chat model is written as URL#MODEL (for example http://localhost:8000/v1#qwen3) or as "
        "local:FOLDER_OR_HUB_ID; the one given has neither form."
    )


async def check_endpoints(chats: Iterable[ChatModel]) -> None:
    """Ask each endpoint once, before other work, whether it is there.

    One with kept replies of its model need not be, but its key goes where others go. Raises
    UserError for an endpoint that is not there, for a refused key, and where MOSA_API_KEY would go
    to several hosts.
    """
    named: list[EndpointChat] = []
    asked: dict[tuple[str, str], EndpointChat] = {}
    for chat in chats:
        endpoint = chat.chat if isinstance(chat, CachedChat) else chat
        if isinstance(endpoint, EndpointChat):
            named.append(endpoint)
            if not (isinstance(chat, CachedChat) and chat.has_replies):
                asked[endpoint.address.url, endpoint.address.headers["Authorization"]] = endpoint
    owners: dict[str, str] = {}
    for chat in named:
        address = chat.address
        host = "this machine" if is_this_machine(address.host) else address.host
        owner = owners.setdefault(address.key_variable, host)
        if address.has_key and owner != host:
            raise UserError(
                f"{address.key_variable} would go to {owner} and to {host}; name the key of each "
                f"role, as MOSA_API_KEY_JUDGE ({NO_KEY} for a host without one)."
            )
    await asyncio.gather(*(chat.probe() for chat in asked.values()))


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
    "check_endpoints",
    "key_variables",
]
