"""`mosa attacks check`: what chat models make of the prompts that attacks send them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.attacks.check import check_prompts
from mosa.chat import ChatOptions, check_endpoints
from mosa.cli.evaluate import role_options
from mosa.cli.options import DATA_DIR_HELP, FILES, Command, ListOf, add_fields
from mosa.cli.results import end_status
from mosa.cli.tables import Column, Page, TextTable
from mosa.files import claim_file, seal, write_sealed
from mosa.runs.options import role_chats
from mosa.runs.plan import ROLES
from mosa.runs.sets import SetOptions, is_testbed_set, load_sets
from mosa.stats.rates import format_value
from mosa.testbed import find_world
from mosa.types import UserError
from mosa.worker import run_coroutine

MADE_BY = "mosa attacks check"
"""In the file, by which a later call knows what it may replace."""
SHARES = ("readable", "declined", "cut", "on topic", "distinct")
SHOWN = 300
"""Letters of a reply that are shown; the file has all."""


def _arguments(parser: ArgumentParser) -> None:
    role_options(parser)
    add_fields(parser, ChatOptions, group="chat endpoints")
    parser.add_argument(
        "--attacks", type=ListOf(str), default=(), help="attacks whose prompts are sent; unset: all"
    )
    parser.add_argument(
        "--set",
        type=str,
        default="testbed",
        help=f"requests; a name (`mosa sets` lists them) or {FILES}",
    )
    parser.add_argument("--limit", type=int, default=20, help="how many requests")
    parser.add_argument(
        "--batch_size", type=int, default=8, help="replies of a local model at once"
    )
    parser.add_argument(
        "--max_tokens",
        type=int | None,
        help="tokens of a reply at most; unset: as many as each attack asks for",
    )
    parser.add_argument("--out", type=Path, help="JSON file for shares and all replies")
    parser.add_argument("--data_dir", type=Path, help=DATA_DIR_HELP)
    parser.add_argument("--device", type=str, help="device of local chat models")


def _check(args: Namespace) -> int:
    with claim_file(args.out, MADE_BY):  # before the work
        return _measure(args)


def _measure(args: Namespace) -> int:
    chats = role_chats(args.as_dict(), batch_size=args.batch_size)
    if not chats:
        options = " or ".join(f"--{option}" for option in ROLES.values())
        raise UserError(f"no chat model is named; name one with {options}")
    run_coroutine(check_endpoints(chats.values()))
    world = find_world("testbed") if is_testbed_set(args.set) else None
    options = SetOptions(limit=args.limit, data_dir=args.data_dir)
    (cases,) = load_sets([args.set], world, options)
    checks = run_coroutine(
        check_prompts(chats, cases.cases, args.attacks, max_tokens=args.max_tokens)
    )
    title = f"Prompts of attacks on {len(cases.cases)} requests of {cases.name}"
    rows = [
        (
            check.prompt,
            str(len(check.examples)),
            *(format_value(check.shares[c]) if c in check.shares else "-" for c in SHARES),
            check.role,
        )
        for check in checks
    ]
    columns = (
        Column("prompt", is_number=False),
        Column("replies", 2),
        *map(Column, SHARES),
        Column("role", 1, is_number=False),
    )
    page = Page()
    page.table(TextTable(title, columns, rows))
    console = page.console
    for check in checks:
        told: set[str] = set()
        for example in check.examples:  # the first of each kind
            if example.trouble in told:
                continue
            told.add(example.trouble)
            kind = f"unread: {example.trouble}" if example.trouble else "read"
            reply = " ".join(example.reply.split())[:SHOWN]
            console.print(f"\n{check.prompt} ({kind})\n  {example.request}\n  > {reply}")
    if args.out is not None:
        found = {
            "made_by": seal(MADE_BY),
            "chats": {role: chat.name for role, chat in chats.items()},
            "set": cases.name,
            "num_requests": len(cases.cases),
            "prompts": [
                {
                    "role": check.role,
                    "prompt": check.prompt,
                    "shares": check.shares,
                    "replies": [dataclasses.asdict(each) for each in check.examples],
                }
                for check in checks
            ],
        }
        write_sealed(args.out, json.dumps(found, indent=2, ensure_ascii=False) + "\n")
        console.print(f"wrote {args.out}")
    asked = {check.role for check in checks}
    read = {check.role for check in checks if check.shares["readable"]}
    unread = [option for role, option in ROLES.items() if role in asked - read]
    return end_status([f"--{option}: no reply can be read" for option in unread])


COMMANDS: dict[str, Command] = {
    "attacks check": Command(
        "measure how chat models answer the prompts of attacks",
        _arguments,
        _check,
        "Nothing is written before all replies have come.",
        example="mosa attacks check --attacker http://localhost:8000/v1#NAME --attacks pair,tap",
    ),
}
