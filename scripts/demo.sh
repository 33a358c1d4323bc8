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
cp "$root/configs/demo.yaml" .

step "1. A corpus (the source of Python's standard library) and a tokenizer trained on it"
run gptlab tokenizer train --input stdlib --vocab-size 4096 --name stdlib4k
run gptlab tokenizer show stdlib4k 'def area(radius): return math.pi * radius ** 2'

step "2. Token shards"
run gptlab data prepare stdlib --tokenizer stdlib4k

step "3. A GPT of a million parameters"
run gptlab train demo.yaml
trained=$(echo runs/demo-*)

step "4. How good is it?"
run gptlab eval "$trained" --tasks loss

step "5. What does it write?"
run gptlab sample "$trained" 'def read_file(path):' 'class Stack:' --temperature 0.7 --top-k 50 --max-new-tokens 80 --seed 1

cat <<END

That took $((SECONDS - started)) seconds. The loss curve is demo/$trained/loss.png, every number is in metrics.jsonl beside it.

What to try next (in demo/, with .venv/bin on your PATH):
  gptlab sample $trained                                   more samples; --show-tokens colours the tokens
  gptlab trace demo.yaml                                   every tensor shape in the model
  gptlab train demo.yaml --set name=swiglu --set model.block.mlp=SwiGLU    swap a part, compare the curves
  gptlab train $trained --resume --set train.tokens=5M     train the same model for longer
  gptlab data presets                                      real corpora, up to 100B tokens
END
