"""Chat models: what writes for the attacker and what answers a prompted judge.

Start reading in base.py (the interface). A chat model is named by where it runs:
`http://localhost:8000/v1#MODEL`, with `@VARIABLE` behind it where its key stands in a variable of
its own, or `local:FOLDER_OR_HUB_ID`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable

from mosa.chat.address import NO_KEY, is_this_machine, key_variables
from mosa.chat.base import (
    ChatError,
    ChatModel,
    ChatReply,
    ChatRequest,
    NoAnswerError,
    ServerDownError,
)
from mosa.chat.cache import CachedChat
from mosa.chat.endpoint import ChatOptions, Completion, EndpointChat
from mosa.chat.local import LocalChat
from mosa.types import UserError


def names_endpoint(spec: str) -> bool:
    """Whether a name is one of a model at an address."""
    base_url, mark, _ = spec.partition("#")
    return "://" in base_url and bool(mark)


def split_name(spec: str) -> tuple[str, str, str | None]:
    """Address, model and the key's variable of URL#MODEL or URL#MODEL@VARIABLE.

    >>> split_name("http://localhost:8000/v1#@cf/qwen@MY_KEY")
    ('http://localhost:8000/v1', '@cf/qwen', 'MY_KEY')
    """
    base_url, _, model = spec.partition("#")
    found = re.fullmatch(r"(.+)@([A-Z][A-Z0-9_]*)", model)
    return (base_url, model, None) if found is None else (base_url, found[1], found[2])


def endpoint_model(spec: str, options: ChatOptions, *, role: str | None = None) -> EndpointChat:
    """The model at an address that `spec` names; UserError for an address that is none."""
    base_url, model, variable = split_name(spec)
    return EndpointChat(base_url, model, options, role=role, key_variable=variable)


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
    if names_endpoint(spec):
        chat = endpoint_model(spec, options, role=role)
        return chat if options.reply_cache is None else CachedChat(chat, options.reply_cache)
    if spec.startswith("local:") and spec != "local:":
        return LocalChat(spec.removeprefix("local:"), device=device, batch_size=batch_size)
    raise UserError(
        "A chat model is written as URL#MODEL (for example http://localhost:8000/v1#qwen3) or as "
        "local:FOLDER_OR_HUB_ID; the one given has neither form."
    )


async def check_endpoints(chats: Iterable[ChatModel], greeted: Iterable[EndpointChat] = ()) -> None:
    """Ask each model at an endpoint once, before other work, whether it is there and answers.

    One with kept replies need not be, but its key goes where others go; those that are `greeted`
    afterwards are asked no question here. Raises UserError for an endpoint that is not there, for
    a wrong key or name and where MOSA_API_KEY would go to several hosts, and NoAnswerError for a
    model that answers nothing.
    """
    named: list[EndpointChat] = []
    served = list(greeted)
    asked: dict[tuple[str, str, str], EndpointChat] = {}
    for chat in chats:
        endpoint = chat.chat if isinstance(chat, CachedChat) else chat
        if isinstance(endpoint, EndpointChat):
            named.append(endpoint)
            if not (isinstance(chat, CachedChat) and chat.has_replies):
                address = endpoint.address
                asked[address.url, address.headers["Authorization"], endpoint.name] = endpoint
    owners: dict[str, str] = {}
    for chat in (*named, *served):
        address = chat.address
        host = "this machine" if is_this_machine(address.host) else address.host
        owner = owners.setdefault(address.key_variable, host)
        if address.has_key and owner != host:
            raise UserError(
                f"{address.key_variable} would go to {owner} and to {host}; name the key of each "
                f"role, as MOSA_API_KEY_JUDGE ({NO_KEY} for a host without one), or of each model, "
                "as URL#MODEL@VARIABLE."
            )
    await asyncio.gather(
        *(chat.probe() for chat in asked.values()),
        *(chat.probe(is_greeted=True) for chat in served),
    )


__all__ = [
    "CachedChat",
    "ChatError",
    "ChatModel",
    "ChatOptions",
    "ChatReply",
    "ChatRequest",
    "Completion",
    "EndpointChat",
    "LocalChat",
    "NoAnswerError",
    "ServerDownError",
    "chat_model",
    "check_endpoints",
    "endpoint_model",
    "key_variables",
    "names_endpoint",
    "split_name",
]
