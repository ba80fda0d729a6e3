#!/usr/bin/env bash
# Everything that is to be measured on one accelerator, at released shapes with random weights:
#     benchmarks/accelerator.sh RESULTS_FOLDER
# About half an hour on one H200 by estimate; a benchmark that fails does not stop the others.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
out=${1:?name a folder for the results}
mkdir -p "$out"
bench() { PYTHONPATH=src python -m mosa bench "$@"; }
sampler=(sampler --shape llada-8b --device cuda --repeats 2 --max-seconds 60)
bench "${sampler[@]}" --batch 1,8 --temperature 0 --out "$out/sampler_llada-8b.txt"
bench "${sampler[@]}" --batch 8 --temperature 0 --cache dual --against exact \
	--out "$out/sampler_llada-8b_dual.txt"
# Random weights are never sure; factor 4 commits about three tokens a step, as a threshold would.
bench "${sampler[@]}" --batch 8 --temperature 0 --cache dual --factor 4 --against exact \
	--out "$out/sampler_llada-8b_dual_factor.txt"
# The block-causal families, beside their own loops. SDAR's and LLaDA2's take one row after the
# other, so that eight rows take them hundreds of calls.
for shape in qwen3-0.6b sdar-1.7b llada2-mini; do
	bench sampler --shape "$shape" --device cuda --batch 1,8 --temperature 0 --repeats 2 \
		--max-seconds 120 --out "$out/sampler_$shape.txt"
done
for shape in sdar-1.7b llada2-mini; do
	PYTHONPATH=src python benchmarks/blocks.py --shape "$shape" --device cuda --repeats 2 \
		--out "$out/blocks_$shape.txt"
done
bench align --shape llada-8b --device cuda --against none --out "$out/align_llada-8b.txt"
