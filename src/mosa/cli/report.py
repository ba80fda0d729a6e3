"""The command that makes one page of runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from mosa.api.pages import WrittenReport, report
from mosa.cli.options import Command
from mosa.terminal import show
from mosa.types import UserError


def _report_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "runs",
        type=Path,
        nargs="+",
        help="folders of runs; runs in folders below them are included",
    )
    parser.add_argument(
        "--out", type=Path, required=True, help="file for the page, for example report.html"
    )
    parser.add_argument("--tables", type=Path, help="folder for the tables as CSV, JSON and LaTeX")
    parser.add_argument(
        "--redact", action="store_true", help="leave out prompts and responses, even the testbed's"
    )
    parser.add_argument(
        "--no_redact", action="store_true", help="show prompts and responses, even of real models"
    )
    parser.add_argument(
        "--judge",
        type=str,
        help="judge that counts, by its id or name; unset: the most trusted",
    )
    parser.add_argument("--title", type=str, help="heading of the page")
    parser.add_argument(
        "--label",
        type=str,
        nargs="+",
        metavar="NAME=LABEL",
        default=[],
        help="subjects on the page and their labels, each NAME=LABEL; others are compared with the "
        "first",
    )
    parser.add_argument(
        "--calibration",
        type=Path,
        help="file of judges' errors (`mosa judge check --out`), by which rates are corrected",
    )


def _report(args: Namespace) -> None:
    if args.redact and args.no_redact:
        raise UserError("--redact and --no_redact exclude each other; leave one out")
    written = report(
        args.runs,
        args.out,
        tables=args.tables,
        redact=True if args.redact else False if args.no_redact else None,
        judge=args.judge,
        title=args.title,
        label=_labels(args.label),
        calibration=args.calibration,
    )
    content = written.content
    for sentence in (*content.verdict[:1], *content.cautions):
        show(sentence)
    show_written(written)
    if args.tables is not None:
        show(f"wrote {len(written.tables)} files to {args.tables}")


def show_written(written: WrittenReport) -> None:
    """Say what was written."""
    size = written.out.stat().st_size / 1e6
    hidden = (
        "without prompts and responses, which `mosa report --no-redact` shows"
        if written.content.is_redacted
        else "with all words"
    )
    show(f"wrote {written.out} ({size:.1f} MB, {hidden})")


def _labels(written: Sequence[str]) -> dict[str, str]:
    labels = {}
    for entry in written:
        name, sign, label = entry.partition("=")
        if not sign or not name or not label or name in labels:
            raise UserError(
                f"--label {entry} is not NAME=LABEL with a new NAME; label each subject once"
            )
        labels[name] = label
    return labels


COMMANDS: dict[str, Command] = {
    "report": Command(
        "write one HTML page about runs, with samples of responses",
        _report_arguments,
        _report,
        "The runs are unchanged.",
        example="mosa report runs/a --out report.html",
    ),
}
