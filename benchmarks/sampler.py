"""Time of our sampler beside the published loop, on a small network with a wide vocabulary.

    python benchmarks/sampler.py [--device cuda] [--batch 1 8] [--temperature 0 1]

Both fill the same canvas with the same model in one process, taking turns, and the smallest time of
each counts. The published loop is `generate` of ML-GSAI/LLaDA written out plainly: logits and
softmax of the whole canvas, float64 Gumbel noise for all of it above temperature 0, one `topk` per
row. At temperature 0 the tokens are compared as well. Prints one line per setting; nothing is kept.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mosa.denoising import sample
from mosa.families import DiffusionLM, new_model

CONFIG = {
    "model_type": "llada",
    "d_model": 256,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 4,
    "mlp_hidden_size": 768,
    "max_sequence_length": 1024,
    "vocab_size": 126464,
    "embedding_size": 126464,
    "mask_token_id": 126336,
    "eos_token_id": 126081,
    "pad_token_id": 126081,
}


@torch.no_grad()
def published_loop(
    model: DiffusionLM,
    prompt: Tensor,
    *,
    max_new_tokens: int,
    block_length: int,
    steps: int,
    temperature: float,
) -> Tensor:
    """What `generate` computes, step by step, on the whole canvas."""
    mask, start = model.mask_token_id, prompt.shape[1]
    tokens = torch.cat([prompt, prompt.new_full((len(prompt), max_new_tokens), mask)], dim=1)
    num_blocks = max_new_tokens // block_length
    per_block = steps // num_blocks
    for block in range(num_blocks):
        end = start + (block + 1) * block_length
        left = (tokens[:, :end] == mask).sum(dim=1)
        counts = left[:, None] // per_block + (
            torch.arange(per_block, device=tokens.device) < (left % per_block)[:, None]
        )
        for step in range(per_block):
            logits = model.logits(tokens)
            noisy = logits
            if temperature > 0:
                noisy = logits.double()
                noise = torch.rand_like(noisy)
                noisy = noisy.exp() / (-noise.log()) ** temperature
            chosen = noisy.argmax(dim=-1)
            confidence = logits.softmax(dim=-1).gather(-1, chosen[..., None])[..., 0]
            confidence[:, end:] = -torch.inf
            confidence = confidence.masked_fill(tokens != mask, -torch.inf)
            for row in range(len(tokens)):
                best = confidence[row].topk(int(counts[row, step])).indices
                tokens[row, best] = chosen[row, best]
    return tokens[:, start:]


def timed(run: Callable[[], Tensor], device: torch.device) -> tuple[float, Tensor]:
    """Seconds that a run took, and what it returned."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    begin = time.perf_counter()
    tokens = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, tokens


def main() -> None:
    """Runs every setting and prints its times."""
    parser = argparse.ArgumentParser(description="Times our sampler beside the published loop.")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--temperature", type=float, nargs="+", default=[0.0, 1.0])
    parser.add_argument("--prompt", type=int, default=32, help="prompt tokens")
    parser.add_argument("--length", type=int, default=128, help="response tokens")
    parser.add_argument("--block-length", type=int, default=32)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2)
    args = parser.parse_args()

    device = torch.device(args.device)
    model = new_model(CONFIG, seed=0)
    model.network = model.network.to(device)  # pyright: ignore[reportArgumentType]
    generator = torch.Generator().manual_seed(0)
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    for batch in args.batch:
        prompt = torch.randint(0, 126000, (batch, args.prompt), generator=generator).to(device)
        for temperature in args.temperature:
            settings = {
                "max_new_tokens": args.length,
                "block_length": args.block_length,
                "steps": args.steps,
                "temperature": temperature,
            }

            def published(prompt=prompt, settings=settings) -> Tensor:
                return published_loop(model, prompt, **settings)

            def ours(prompt=prompt, settings=settings) -> Tensor:
                return sample(model, prompt, **settings).tokens

            pairs = [(timed(published, device), timed(ours, device)) for _ in range(args.repeats)]
            theirs = min(first[0] for first, _ in pairs)
            mine = min(second[0] for _, second in pairs)
            (_, expected), (_, found) = pairs[0]
            agreement = ""
            if temperature == 0:
                agreement = f", {float((expected == found).float().mean()):.1%} of tokens equal"
            print(
                f"batch {batch}, temperature {temperature:g}: published {theirs:.2f} s, "
                f"ours {mine:.2f} s, {theirs / mine:.1f} times as fast{agreement}",
                flush=True,
            )


if __name__ == "__main__":
    main()
