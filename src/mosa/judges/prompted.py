"""Judges that ask a chat model: filling the prompt, asking, and reading the reply strictly.

A reply that does not say one thing plainly is unscored, never "safe". Only the judge's reply is
read for a verdict, never the response in its prompt.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

from mosa.chat.base import ChatError, ChatRequest, ServerDownError
from mosa.chat.cache import CachedChat
from mosa.chat.local import LocalChat
from mosa.chat.questions import Unreadable, fill, without_thoughts
from mosa.chat.replies import declines
from mosa.judges.base import AskingJudge, Item, JudgeInfo, JudgeSetting, judge_id
from mosa.types import Message, UserError, Verdict, short_hash

MAX_REPLY_TOKENS = 1024
"""Room for a model that thinks aloud before it answers; a reply that needs more is unscored."""
DECLINED = "The judge's model declined."
"""The reason of a verdict that is unscored because the reply is a refusal."""
DOWN = "The judge's model gave no answer"
"""How the reason begins where other questions would fare no better."""
NOTHING_TO_READ = "The judge's model gave nothing to read"
"""How it begins where an answer without a reply came, as to a question that is too long."""


class PromptedJudge(AskingJudge):
    """A judge that shows a chat model the behavior and the response and reads its reply.

    `read` makes a verdict of the model's words or raises Unreadable.
    """

    def __init__(
        self,
        name: str,
        version: int,
        template: str,
        read: Callable[[str], Verdict],
        setting: JudgeSetting,
    ) -> None:
        if setting.chat is None:
            raise UserError(
                f"The judge {name} asks a chat model, and none is set; name one, for example "
                "http://localhost:8000/v1#MODEL or local:FOLDER."
            )
        self._template = template if setting.template is None else setting.template
        check_template(name, self._template)
        self._name, self._version = name, version
        self._read, self.chat = read, setting.chat
        self.local_model = self.chat.model if isinstance(self.chat, LocalChat) else None

    @property
    def id(self) -> str:
        """Name, version, hash of the template, and the chat model."""
        return judge_id(self._name, self._version, short_hash(self._template), self.chat.name)

    async def ask(self, item: Item) -> Verdict:
        request = ChatRequest(
            messages=(Message("user", fill(self._template, item.behavior, item.response)),),
            task=f"judge/{self._name}",
            fields={"behavior": item.behavior.request, "response": item.response},
            max_tokens=MAX_REPLY_TOKENS,
        )
        try:
            reply = await self.chat.complete(request)
        except ServerDownError as error:
            return Verdict.unscored(f"{DOWN}: {error}")
        except ChatError as error:
            return Verdict.unscored(f"{NOTHING_TO_READ}: {error}")
        said = without_thoughts(reply.text)
        try:
            if reply.is_cut:
                raise Unreadable("The judge's reply was cut off.")
            verdict = self._read(said)
        except Unreadable as error:
            if isinstance(self.chat, CachedChat):  # so that it is asked again next time
                self.chat.forget(request)
            return Verdict.unscored(DECLINED if declines(said) else str(error), reply.text)
        return dataclasses.replace(verdict, raw=reply.text)


def prompted_judge(
    name: str,
    version: int,
    template: str,
    read: Callable[[str], Verdict],
    *,
    summary: str,
    source: str,
    threshold: str,
    tells_refusals: bool = False,
) -> JudgeInfo:
    """A prompted judge's line of the table; arguments as of `PromptedJudge` and `JudgeInfo`."""

    def make(setting: JudgeSetting) -> PromptedJudge:
        return PromptedJudge(name, version, template, read, setting)

    return JudgeInfo(name, summary, source, "chat model", threshold, make, tells_refusals)


def check_template(name: str, template: str, aliases: Mapping[str, str] | None = None) -> None:
    """Raise UserError if a template does not place the behavior and the response."""
    for wanted in ("behavior", "response"):
        spellings = [wanted, *(a for a, meant in (aliases or {}).items() if meant == wanted)]
        if not any(f"{{{spelling}}}" in template for spelling in spellings):
            raise UserError(
                f"The template of the judge {name} lacks {{{wanted}}}; write it where the "
                f"{wanted} belongs."
            )
