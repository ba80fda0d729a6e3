"""Where requests to a chat endpoint go, and with which key: decided before anything is sent.

A key goes to the host that it was named for: that of the variable behind URL#MODEL@VARIABLE to this
host; that of a role (MOSA_API_KEY_MODEL, _ATTACKER, _LOOP_JUDGE, _TRANSLATOR or _JUDGE) to this
role's host, OPENAI_API_KEY to https://api.openai.com, MOSA_API_KEY to any other, and to one host in
a command. No key leaves this machine over plain http. Without a key the word "none" is sent, which
local servers accept.
"""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import re
import ssl
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from mosa.inputs import is_file, is_folder
from mosa.types import UserError

OPENAI_KEY, OWN_KEY = "OPENAI_API_KEY", "MOSA_API_KEY"
KEY_ROLES = ("model", "attacker", "loop_judge", "translator", "judge")
"""Roles that may have a key of their own, in MOSA_API_KEY_ROLE."""
OPENAI_HOST = "api.openai.com"
OPENAI_HEADERS = {"OPENAI_ORG_ID": "OpenAI-Organization", "OPENAI_PROJECT_ID": "OpenAI-Project"}
"""Sent to OpenAI alone, with OPENAI_API_KEY."""
NO_KEY = "none"
NO_KEYS = (NO_KEY, "empty")
"""What stands for no key, in any case; vLLM's own pages write EMPTY."""
LEAST_SECRET = 8
"""Characters of a key that no text says by chance."""
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")


@dataclass(frozen=True)
class Address:
    """An endpoint, and how a request gets there."""

    url: str
    """What comes before /chat/completions."""
    host: str
    place: str
    """Host and port, for the records."""
    key_variable: str
    """Where its key stands, or would."""
    headers: dict[str, str] = field(repr=False)
    """With the key."""
    has_key: bool
    proxy: tuple[str, str] | None = field(repr=False)
    """The variable that names a proxy, and its address."""
    certificates: ssl.SSLContext | None = field(repr=False)
    """Those of SSL_CERT_FILE or SSL_CERT_DIR; None: the system's."""


_named_variables: set[str] = set()
"""Those that a command has named, whose keys no text may show either."""


def address_of(url: str, role: str | None = None, variable: str | None = None) -> Address:
    """The address that `url` names, with the key in `variable` or, without one, that of a role.

    Raises UserError for what is no address or holds a secret, for a key that cannot be sent or
    would be sent in the open, and for proxies and certificates that cannot be used.
    """
    parts = _split(url)
    host, port = parts.hostname or "", parts.port
    is_openai = parts.scheme == "https" and host == OPENAI_HOST and port in (None, 443)
    if variable is not None:
        _named_variables.add(variable)
        if not (key := _key(variable)):
            raise UserError(
                f"{variable} holds no key for {host}; set it, or leave @{variable} out of the name"
            )
    else:
        variables = [v for v in key_variables(role) if v != OPENAI_KEY or is_openai]
        variable, key = next(((v, k) for v in variables if (k := _key(v))), (variables[0], NO_KEY))
    headers = {"Authorization": f"Bearer {key}"}
    if variable == OPENAI_KEY and is_openai:
        named = {header: _key(name) for name, header in OPENAI_HEADERS.items()}
        headers |= {header: value for header, value in named.items() if value}
    in_brackets = f"[{host}]" if ":" in host else host
    place = in_brackets if port is None else f"{in_brackets}:{port}"
    proxy = _proxy(parts.scheme, host, place)
    has_key = not _is_none(key)
    if has_key and parts.scheme == "http":
        if not is_this_machine(host):
            own = _variable_of(role) if role else variable
            raise UserError(
                f"The key in {variable} would go to {place} over plain http, where others can read "
                f"it; give an address that begins with https:// or, through a tunnel such as ssh "
                f"-L, with http://localhost; for a server without a key, set {own}={NO_KEY}."
            )
        if proxy is not None and not is_this_machine(urlsplit(proxy[1]).hostname or ""):
            raise UserError(
                f"The key in {variable} would go over plain http to the proxy of {proxy[0]}; set "
                f"NO_PROXY={host}, or unset one of them."
            )
    return Address(
        f"{parts.scheme}://{place}{parts.path.rstrip('/')}",
        host,
        place,
        variable,
        headers,
        has_key,
        proxy,
        _certificates(),
    )


def key_variables(role: str | None) -> tuple[str, ...]:
    """Where the key of a role is looked for, in order; a role with a key of its own has no other.

    Raises AssertionError for a role that is none.
    """
    assert role is None or role in KEY_ROLES, role
    own = _variable_of(role) if role else ""
    return (own,) if os.environ.get(own, "").strip() else (OPENAI_KEY, OWN_KEY)


def without_keys(text: str, *, least: int = 1) -> str:
    """The text with [key] in place of every key that mosa may send, of at least so many characters.

    Part of a word is none of the short ones.
    """
    variables = (OPENAI_KEY, OWN_KEY, *map(_variable_of, KEY_ROLES), *_named_variables)
    keys = {os.environ.get(variable, "").strip() for variable in variables}
    # Longest first: one may begin with another.
    for key in sorted(keys, key=len, reverse=True):
        if len(key) < least or _is_none(key) or not key:
            continue
        is_short = len(key) < LEAST_SECRET
        pattern = rf"(?<!\w){re.escape(key)}(?!\w)" if is_short else re.escape(key)
        text = re.sub(pattern, "[key]", text)
    return text


def is_this_machine(host: str) -> bool:
    """Whether a host's name can only mean this machine."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return ip.is_loopback or ip.is_unspecified


def _is_none(key: str) -> bool:
    return key.lower() in NO_KEYS


def _variable_of(role: str) -> str:
    return f"{OWN_KEY}_{role.upper()}"


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise UserError(
            "The address of a chat endpoint is malformed (its port must be a number from 0 to "
            "65535, an IPv6 host stand in brackets); correct it."
        ) from None
    host = parts.hostname or ""
    is_plain = url.isprintable() and " " not in url
    # Other letters may be read as another host by who sends the request.
    is_host = re.fullmatch(r"[a-z0-9._-]+|[0-9a-f:.]*:[0-9a-f:.]*", host) is not None
    if parts.scheme not in ("http", "https") or not is_plain or not (is_host or "@" in url):
        raise UserError(
            "The address of a chat endpoint must begin with http:// or https:// and a host, as in "
            "URL#MODEL: http://localhost:8000/v1#qwen3."
        )
    # Addresses are written into records, so none may contain a secret.
    if "@" in parts.netloc or parts.query:
        raise UserError(
            f"The address at {host} holds a user name, a password or a query; leave them out and "
            f"put the key into {OWN_KEY}."
        )
    return parts


def _key(variable: str) -> str:
    key = os.environ.get(variable, "").strip()
    # Such a key could not be sent, and the error that says so would quote it.
    if not key.isascii() or not key.isprintable() or " " in key:
        raise UserError(f"{variable} holds characters that no key has; correct it.")
    return key


def _proxy(scheme: str, host: str, place: str) -> tuple[str, str] | None:
    """The variable that names a proxy for an address, and the proxy."""
    named = urllib.request.getproxies_environment()
    kind = next((kind for kind in (scheme, "all") if named.get(kind)), None)
    if kind is None or urllib.request.proxy_bypass(host) or urllib.request.proxy_bypass(place):
        return None
    variable = next(v for v, to in os.environ.items() if to and v.lower() == f"{kind}_proxy")
    url = named[kind] if "://" in named[kind] else f"http://{named[kind]}"
    try:
        parts = urlsplit(url)
        scheme = parts.scheme if parts.hostname and parts.port != 0 else ""
    except ValueError:
        scheme = ""
    if scheme not in PROXY_SCHEMES:
        raise UserError(
            f"{variable} names no proxy that can be used ({', '.join(PROXY_SCHEMES)}); correct it, "
            f"or set NO_PROXY={host}."
        )
    if scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise UserError(
            f"{variable} names a SOCKS proxy, which needs the package socksio; install it, or set "
            f"NO_PROXY={host}."
        )
    return variable, url


def _certificates() -> ssl.SSLContext | None:
    """Those that the environment names."""
    for variable, what in (("SSL_CERT_FILE", "file"), ("SSL_CERT_DIR", "folder")):
        path = os.environ.get(variable)
        if not path:
            continue
        if not (is_file if what == "file" else is_folder)(Path(path)):
            raise UserError(f"{variable} names no {what}: {path}; correct or unset it.")
        try:
            if what == "file":
                return ssl.create_default_context(cafile=path)
            return ssl.create_default_context(capath=path)
        except OSError as error:
            raise UserError(
                f"{variable} names {path}, which holds no certificates that can be read "
                f"({error.strerror or type(error).__name__}); correct or unset it."
            ) from None
    return None
