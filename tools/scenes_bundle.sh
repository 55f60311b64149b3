#!/usr/bin/env bash
# Makes the model that comes with the package, unialign_jax/bundled/scenes: the one that `unialign
# demo` trains. Scores it too.
#   tools/scenes_bundle.sh                 as it is shipped; a stopped call continues
#   STEPS=60 RECORDS=120 ITEMS=2 WORK=trial BUNDLE=trial/bundle RESULTS=trial/scores tools/scenes_bundle.sh
#                                          a trial that touches nothing of the checkout
# Arguments go to `unialign train`, for example --config.model.layers=1.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SEED="${SEED:-0}"
STEPS="${STEPS:-1780}"
RECORDS="${RECORDS:-30000}"
ITEMS="${ITEMS:-200}"
WORK="${WORK:-runs/scenes_bundle}"
BUNDLE="${BUNDLE:-unialign_jax/bundled/scenes}"
RESULTS="${RESULTS:-docs/results/scenes_bundle}"

unialign() {
  .venv/bin/python -m unialign_jax "$@"
}

unialign prepare scenes --out "$WORK/scenes" --level demo --pixels 16 \
  --records "$RECORDS" --seed "$SEED"
unialign cache --data "$WORK/scenes" --teacher scenes --seed "$SEED"
unialign train --config scenes:demo --workdir "$WORK/run" \
  --config.data.path="$WORK/scenes" --config.seed="$SEED" \
  --config.train.steps="$STEPS" --config.optimizer.decay_steps="$STEPS" \
  --config.data.first_steps="$((STEPS * 300 / 1780))" \
  --config.train.sample_every=0 --config.checkpoint.every_steps=$(((STEPS + 3) / 4)) "$@"
unialign bundle "$WORK/run" "$BUNDLE" --config scenes:demo --name scenes --dtype float16 --overwrite
unialign evaluate scenes --model "$BUNDLE" --items "$ITEMS" --seed "$SEED" --out "$WORK/scores"
mkdir -p "$RESULTS"
cp "$WORK/scores/scores.json" "$RESULTS/"
