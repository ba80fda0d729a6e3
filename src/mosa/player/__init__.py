"""A denoising as a picture that plays: what the report's page and notebooks show of a response.

Text reaches the page as data and is only ever set as text, so that nothing that a model says is
markup or a script.
"""

from __future__ import annotations

import base64
import hashlib
import html
import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from importlib import resources

from mosa.terminal import show

NUM_STEP_COLOURS = 8
"""Classes of commit step that have a colour of their own."""
MOST_SHOWN = 8
"""Responses in one picture."""

COLOURS = {
    # Light and dark scheme, as variables of the style sheet.
    "page": ("#fbfbfa", "#131418"),
    "text": ("#1c1d21", "#e9e9ea"),
    "soft": ("#5d6068", "#a2a6af"),
    "rule": ("#e3e3e0", "#30333b"),
    "accent": ("#1d4ed8", "#86b1fb"),
    "pin": ("#b91c1c", "#f87171"),
    # Commit steps: ground, then ink.
    "step-0": ("#1e3a8a", "#dbe8ff"),
    "step-1": ("#1d4ed8", "#b3cfff"),
    "step-2": ("#2f6be0", "#86b1fb"),
    "step-3": ("#6aa2f5", "#5c90ea"),
    "step-4": ("#9cc3fa", "#3864b0"),
    "step-5": ("#c3dbfc", "#2d4f8c"),
    "step-6": ("#dce9fd", "#263d68"),
    "step-7": ("#edf3fe", "#222f4a"),
    **{f"ink-{i}": ("#ffffff" if i < 3 else "#16213d", "#101a33" if i < 4 else "#eaf0fc")
       for i in range(NUM_STEP_COLOURS)},
}  # fmt: skip

RAMP = (
    '<span>first <span class="ramp">'
    + "".join(f'<i class="step-{i}"></i>' for i in range(NUM_STEP_COLOURS))
    + "</span> last step</span>"
)
"""The colours of the steps in their order."""
KEY = (
    '<div class="key">'
    + RAMP
    + """
<span><b class="t pinned">word</b> set by the attacker</span>
<span><b class="t end step-3">end</b> end token</span>
<span><b class="t unread step-4">word</b> behind the first end token, not read</span>
<span><b class="t mask">word</b> not yet written</span>
<span><b class="t step-4 replaced">word</b> replaced in a later step</span>
<span><i class="cut"></i> a block begins</span>
</div>"""
)
"""What the colours and marks mean."""

_BASE = """
body { margin: 0; background: transparent; color: var(--text); overflow-wrap: break-word;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
button { font: inherit; color: inherit; background: transparent; border: 1px solid var(--rule);
  border-radius: 7px; padding: .25rem .7rem; cursor: pointer; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; border-radius: 4px; }
.about { color: var(--soft); font-size: .86rem; margin: .3rem 0; }
.response { border-top: 0; margin-top: 0; }
"""
_BEGIN = """
const data = JSON.parse(document.getElementById("data").textContent);
data.forEach((response, i) => {
  const options = { isShown: response.tokens !== null, number: data.length > 1 ? i + 1 : 0 };
  document.getElementById("here").append(new Player(response, options).element);
});
// The frame is as high as what it holds.
const fit = () => {
  const height = document.documentElement.offsetHeight + 4;
  if (window.frameElement) frameElement.style.height = `${height}px`;
};
new ResizeObserver(fit).observe(document.body);
fit();
"""


@dataclass(frozen=True)
class SampleResponse:
    """One generation, position by position."""

    commit_step: tuple[int, ...]
    """The step (from 0) that wrote each position, -1 where the attacker pinned it; of a served
    subject, whose steps are not known, 0 for each word."""
    end_positions: tuple[int, ...]
    """The positions (from 0) that hold an end token."""
    tokens: tuple[str, ...] | None
    """The words; None under redaction."""
    prompt: tuple[tuple[str, str], ...] | None
    """(role, text) of each turn that was sent; None under redaction."""
    block_starts: tuple[int, ...] = ()
    """The positions (from 0) at which a block begins."""
    replaced: tuple[tuple[int, int, int, str | None], ...] = ()
    """What stood at a position before: position and the steps that wrote it and took it away, from
    0, and the word; None under redaction."""

    @property
    def text_read(self) -> str:
        """Its words up to the first end token; empty under redaction."""
        return " ".join((self.tokens or ())[: min(self.end_positions, default=None)])

    def without_words(self) -> SampleResponse:
        """The same response under redaction."""
        places = tuple((*place, None) for *place, _ in self.replaced)
        return replace(self, tokens=None, prompt=None, replaced=places)


@cache
def source(name: str) -> str:
    """The text of player.js or player.css."""
    return (resources.files("mosa.player") / name).read_text(encoding="utf-8")


def colour_rules(colours: Mapping[str, tuple[str, str]]) -> tuple[str, str]:
    """The declarations of the light scheme and of the dark one."""
    light, dark = (
        "".join(f"--{name}: {pair[place]}; " for name, pair in colours.items()) for place in (0, 1)
    )
    return f"{{ color-scheme: light; {light}}}", f"{{ color-scheme: dark; {dark}}}"


def script_hash(script: str) -> str:
    """The SHA-256 by which a page's content security policy knows its script."""
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def player_page(responses: Sequence[SampleResponse], about: str = "") -> str:
    """A page by itself on which the responses play, below a sentence about them."""
    script = source("player.js") + _BEGIN
    light, dark = colour_rules(COLOURS)
    style = (
        f":root {light}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {dark} }}\n"
        f"* {{ box-sizing: border-box; }}\n{source('player.css')}{_BASE}"
    )
    shown = [asdict(response) for response in responses[:MOST_SHOWN]]
    if len(responses) > MOST_SHOWN:
        about += f" The first {MOST_SHOWN} of {len(responses)} responses:"
    data = json.dumps(shown).replace("<", "\\u003c")
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'sha256-{script_hash(script)}'; base-uri 'none'; form-action 'none'">
<title>Denoising</title><style>{style}</style></head>
<body><p class="about">{html.escape(about.strip())}</p><div id="here"></div>{KEY}
<script type="application/json" id="data">{data}</script>
<script>{script}</script></body></html>"""


def player_html(responses: Sequence[SampleResponse], about: str = "") -> str:
    """The page of `player_page` as a frame in a notebook, apart from the notebook's own styles."""
    num_tokens = sum(len(response.commit_step) for response in responses[:MOST_SHOWN])
    height = 150 + 110 * min(len(responses), MOST_SHOWN) + 3 * num_tokens
    page = html.escape(player_page(responses, about), quote=True)
    return (
        f'<iframe srcdoc="{page}" title="A denoising" '
        f'style="width: 100%; height: {height}px; border: 0; color-scheme: light dark"></iframe>'
    )


def display(shown: str, told: str) -> None:
    """Show HTML in a notebook's cell, and the text `told` anywhere else."""
    if "IPython" in sys.modules:
        shell = importlib.import_module("IPython").get_ipython()
        if "ZMQInteractiveShell" in [kind.__name__ for kind in type(shell).__mro__]:
            cell = importlib.import_module("IPython.display")  # a kernel's, not a terminal's
            cell.display(cell.HTML(shown))
            return
    show(told)
