"""Attack a real model, align it, attack it again: LLaDA, Dream, or a checkpoint in their layout.

    python examples/real_model.py GSAI-ML/LLaDA-8B-Instruct --harmful harmful.jsonl --out runs/llada

`harmful.jsonl` holds the requests to refuse (docs/align_your_own_model.md says where from); half of
them train the model and the others attack it, so that nothing is measured on what was trained. The
judge `refusal` finds phrases of refusal and no harm: name one that reads, such as
`--judges strongreject=URL#MODEL`, before you believe a rate. Never run by us on 8 billion weights.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import mosa
from mosa.types import prompt_turns


def main() -> None:
    parser = argparse.ArgumentParser(description="Attack a model, align it, attack it again.")
    parser.add_argument("model", help="folder or hub id of a checkpoint")
    parser.add_argument("--harmful", type=Path, required=True, help="file of requests to refuse")
    parser.add_argument("--out", type=Path, required=True, help="new folder for all that comes out")
    parser.add_argument("--attacks", default="direct,prefill,dija_canvas")
    parser.add_argument("--preset", default="smoke", help="of the attacks; papers' budgets: paper")
    parser.add_argument("--judges", default="refusal", help="names with commas")
    parser.add_argument("--config", default="mosa_llada_paper", help="preset of the alignment")
    parser.add_argument("--max-steps", type=int, help="updates; unset: the preset's")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="length of a response")
    parser.add_argument("--steps", type=int, default=256, help="denoising steps of a response")
    parser.add_argument("--limit", type=int, help="attack only the first N requests")
    args = parser.parse_args()

    examples = mosa.load_prompts(args.harmful)
    training, held_out = examples[::2], examples[1::2]
    args.out.mkdir(parents=True, exist_ok=True)
    asked = args.out / "held_out.jsonl"
    texts = [prompt_turns(example.prompt)[-1]["content"] for example in held_out]
    rows = [json.dumps({"request": text}) for text in texts]
    asked.write_text("\n".join(rows) + "\n", encoding="utf-8")

    model = mosa.load_model(args.model)
    print(model)
    how = {
        "attacks": args.attacks,
        "preset": args.preset,
        "sets": str(asked),
        "judges": args.judges,
        "out": args.out / "run",
        "limit": args.limit,
        "max_new_tokens": args.max_new_tokens,
        "steps": args.steps,
    }
    print(mosa.evaluate(model, **how).results())

    settings = {"response_length": args.max_new_tokens, "max_steps": args.max_steps}
    given = {name: value for name, value in settings.items() if value is not None}
    result = mosa.align("mosa", model, training, args.out / "aligned", config=args.config, **given)
    print(result.message)
    if not result.finished:
        return
    run = mosa.evaluate(model, **how)
    print(run.results())
    before, after = dict.fromkeys(figure.subject for figure in run.results())
    print(mosa.compare(run, run, subject_a=before, subject_b=after))
    print(mosa.report([run], args.out / "report.html"))


if __name__ == "__main__":
    main()
