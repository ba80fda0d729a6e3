"""A chat server as a subject: what it answers, and what it was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from chat.stub_endpoint import Answer, Stub, completion

from mosa.attacks import ATTACKS
from mosa.attacks.base import ChatRole
from mosa.attacks.check import readable_reply
from mosa.chat import ChatModel, ChatOptions, ChatReply, ChatRequest
from mosa.runs.evaluate import EvaluateConfig, run_evaluation
from mosa.runs.sets import SetOptions
from mosa.runs.subject import Subject

OVER_CHAT = [n for n, attack in ATTACKS.items() if {*attack.access} <= {"prompt", "history"}]
"""The attacks that need no more than a chat server."""
AT_ONCE = {"retry-after": "0.01"}


def usage(text: str, *, finish: str = "stop", prompt: int = 7, completed: int = 5) -> dict:
    body = completion(text, finish=finish)
    total = prompt + completed
    counts = {"prompt_tokens": prompt, "completion_tokens": completed, "total_tokens": total}
    return body | {"usage": counts, "model": "tea-1", "system_fingerprint": "fp1"}


def echo(body: dict[str, Any]) -> Answer:
    """Says the last words that it was told."""
    return Answer(usage(body["messages"][-1]["content"]))


def asked(stub: Stub) -> list[str]:
    """The last turns that the server got, without the greeting."""
    turns = [request["messages"][-1]["content"] for request in stub.requests]
    return [turn for turn in turns if turn != "Hello"]


class Readable:
    """Plays a role of attacks in replies that each prompt's reader can read."""

    def __init__(self, role: ChatRole) -> None:
        self.role: ChatRole = role
        self.name, self.place = f"readable {role}", "here"

    async def complete(self, request: ChatRequest) -> ChatReply:
        return ChatReply(readable_reply(self.role, request), num_tokens=3)


def attacked_over_chat(name: str, subject: Subject, folder: Path, options: ChatOptions) -> None:
    """An attack at its smallest runs to its end, whatever the subject answers, and all is on
    record."""
    file = folder / "requests.jsonl"
    file.write_text(json.dumps({"id": "tea", "behavior": "How is strong tea brewed?"}) + "\n")
    chats: dict[ChatRole, ChatModel] = {role: Readable(role) for role in ATTACKS[name].roles}
    config = EvaluateConfig(
        (subject,), (str(file),), (name,), preset="smoke", options=SetOptions(limit=1)
    )
    run = run_evaluation(folder / "run", config, chats=chats, endpoint_options=options)
    assert run is not None
    with run:
        ((_, outcome),) = list(run.tasks())
        attempts = list(run.attempts())
        responses = [response for a in attempts for response in run.responses_of(a.key)]
    assert outcome is not None and outcome.status == "done", outcome
    assert outcome.num_attempts == len(attempts) and any(a.response for a in attempts)
    for response in responses:
        assert response.served is not None and 0 < (response.served.completion_tokens or 0) <= 24
        assert response.served.prompt_tokens
    spent = outcome.budget
    assert spent.target_queries >= len(attempts) and spent.prompt_tokens > spent.target_queries
