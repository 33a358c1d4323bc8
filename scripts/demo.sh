#!/usr/bin/env bash
# The whole of gptlab in five minutes on a laptop: no GPU, no download. Every line that starts with $ is a command
# that works the same on your own text.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
PATH="$root/.venv/bin:$PATH"
started=$SECONDS
step() { printf '\n\033[1m%s\033[0m\n' "$1"; }
run() { printf '\033[2m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf "$root/demo" && mkdir "$root/demo" && cd "$root/demo"

step "1. A corpus (the source of Python's standard library) and a tokenizer trained on it"
run gptlab tokenizer train --input stdlib --vocab-size 4096 --name stdlib4k
run gptlab tokenizer show stdlib4k 'def area(radius): return math.pi * radius ** 2'

step "2. Token shards"
run gptlab data prepare stdlib --tokenizer stdlib4k

step "3. A GPT of a million parameters"
run gptlab train demo
trained=$(echo runs/demo-*)

step "4. How good is it?"
run gptlab eval "$trained" --tasks loss

step "5. What does it write?"
run gptlab sample "$trained" 'def read_file(path):' 'class Stack:' --temperature 0.7 --top-k 50 --max-new-tokens 80 --seed 1

step "6. Is Muon worth it? Four pairs of smaller runs, decided by a rule that is written down first"
mkdir -p experiments/adamw
cat > experiments/adamw/experiment.yaml <<'YAML'
hypothesis: After the same tokens AdamW has a higher validation loss than Muon, each at one rate.
baseline: gptlab:demo
common:
  model: {dim: 96, layers: 2, heads: 3}
  train: {tokens: 100k, batch_tokens: 2048, sequence_length: 128}
  eval: {every: 0, tokens: 32k}
  system: {threads: 1}
arms:
  adamw: {optimizer: {use: AdamW, lr: 4e-3}}
seeds: 4
metric: loss
match: {tokens: 0%, flops: 1%}
decision: {alpha: 0.05, smallest_effect: 0.02}
YAML
run cat experiments/adamw/experiment.yaml
run gptlab run experiments/adamw --yes --no-probe --jobs 2
run gptlab report experiments/adamw

cat <<END

That took $((SECONDS - started)) seconds. The loss curve is demo/$trained/loss.png, every number is in metrics.jsonl beside it.
The verdict is demo/experiments/adamw/report.html. Neither rate was tuned: \`gptlab experiment copy muon-adamw\` does it properly.

What to try next (in demo/, with .venv/bin on your PATH):
  gptlab sample $trained                                   more samples; --show-tokens colours the tokens
  gptlab trace demo                                        every tensor shape in the model
  gptlab train demo --set name=swiglu --set model.block.mlp=SwiGLU    swap a part
  gptlab new my-idea --baseline demo                       an experiment of your own
  gptlab train $trained --resume --set train.tokens=3M     train the same model for longer
  gptlab data presets                                      real corpora, up to 100B tokens
END
