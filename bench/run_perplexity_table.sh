#!/usr/bin/env bash
# Runs bda_perplexity over all strategies and storage types, adding to bench/results/perplexity.json:
# 12 windows for every strategy, all windows for the default one.
#
#   bench/run_perplexity_table.sh PROGRAM [MODEL_DIR EVAL.safetensors]...
#
# Without models it takes the one in examples/data/nano. It can be repeated: an equal run is replaced.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
program=${1:?usage: $0 PROGRAM [MODEL_DIR EVAL.safetensors]...}
shift
if [ $# -eq 0 ]; then
  nano=$root/examples/data/nano
  set -- "$nano" "$nano/eval_public_domain.safetensors"
fi
json=$root/bench/results/perplexity.json
mkdir -p "$(dirname "$json")"

while [ $# -gt 0 ]; do
  model=$1 evaluation=${2:?MODEL_DIR $1 needs an EVAL.safetensors}
  shift 2
  type=$(sed -n 's/.*"model_type": *"\([^"]*\)".*/\1/p' "$model/config.json")
  strategies=(first_r last_r residual_min best_slice joint_pivot)
  if [ "$type" = deepseek_v2 ]; then strategies+=(latent_rotation); fi
  for dtype in fp64 fp32 fp16 bf16; do
    for basis in "${strategies[@]}"; do
      "$program" "$model" "$evaluation" --json "$json" --dtype "$dtype" --basis "$basis" \
        --windows 12
    done
    "$program" "$model" "$evaluation" --json "$json" --dtype "$dtype"
  done
  if [ "$type" = llama ]; then # for the record: what the library refuses to do
    "$program" "$model" "$evaluation" --json "$json" --dtype fp64 --windows 12 --sides qk,vo \
      --force-inexact
  fi
done
