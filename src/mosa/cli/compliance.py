"""The tables of harmless requests: what became of them, model by model."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from mosa.evaluation.over_refusal import ComplianceLine
    from mosa.evaluation.store import Store
    from mosa.stats.rates import Rate


EXPLANATION = (
    "refused: share of the n scored requests that are refused in full or in part, with its 95 % "
    "interval; neither: broken text that neither refuses nor answers; score: mean score of "
    "the judge (truth: share of the steps that are right); broken: tries with broken sentences, "
    "refusals and answers included."
)


def show_compliance(store: Store, console: Console, *, only: str | None = None) -> None:
    """A table for each judge that tells refusals, or for one judge; `EXPLANATION` belongs below."""
    from rich import box
    from rich.table import Table

    from mosa.evaluation.over_refusal import is_benign, summarise, tells_refusals
    from mosa.evaluation.results import attack_names
    from mosa.stats.rates import NOTHING, format_rate

    for judge in store.judges() if only is None else [only]:
        if not tells_refusals(judge):
            console.print(f"judge {judge}: does not tell refusals from answers, so has no table")
            continue
        found = summarise(store, judge)
        names = attack_names((line.attack, line.preset) for line in found)
        title = f"{store.meta('behavior_set')}, judge {judge}"
        table = Table(title=title, box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        for heading in ("  refused", "in full", "complied"):
            table.add_column(heading, overflow="fold")
        for heading in ("in part", "neither", "empty", "n", "score", "broken"):
            table.add_column(heading, justify="right", no_wrap=True)
        for line in found:
            is_plain = len(names) == 1 and line.attack == "direct"
            asked = "" if is_plain else f", {names[line.attack, line.preset]}"
            table.add_section()
            table.add_row(f"[bold]{line.model}[/bold]{asked}")
            tells_broken = line.num_broken is not None
            table.add_row(
                f"  {format_rate(line.over_refusal)}",
                format_rate(line.share("full refusal")),
                format_rate(line.share("full compliance")),
                _bare(line.share("partial refusal")),
                _bare(line.share("incoherent")) if tells_broken else NOTHING,
                _bare(line.share("empty")),
                str(len(line.cases)),
                _bare(line.score),
                f"{line.num_broken}/{line.num_tries}" if tells_broken else NOTHING,
            )
        console.print(table)
        for line in found:
            _show_left_out(line, console)
        if judge.startswith("refusal/"):
            console.print("This judge sees phrases and no sense; `mosa judge` adds another.")
    if not is_benign(store):
        console.print("These requests are harmful, for contrast: to refuse them is right.")
    console.print(f"{_decoder(store)} Run: {store.folder}.")


def _show_left_out(line: ComplianceLine, console: Console) -> None:
    left = {
        "tries unscored": line.num_unscored,
        "tasks failed": line.num_failed,
        "tasks left": line.num_left,
    }
    counts = [f"{count} {what}" for what, count in left.items() if count]
    if counts:
        console.print(f"In no rate of {line.model}: {', '.join(counts)}.")


def _decoder(store: Store) -> str:
    settings = store.meta("decoder")
    block = settings["block_length"]
    blocks = "one block" if block is None else f"blocks of {block}"
    return f"Decoder: {settings['max_new_tokens']} tokens in {settings['steps']} steps, {blocks}."


def _bare(rate: Rate | None) -> str:
    from mosa.stats.rates import NOTHING, format_value

    return NOTHING if rate is None else format_value(rate.rate)
