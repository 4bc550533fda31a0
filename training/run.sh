#!/usr/bin/env bash
# Trains the tiny model from a clean checkout: bash training/run.sh [DIR] [SEED]. Goes on where it was stopped.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here/out}
mkdir -p "$out"
[ -x "$out/venv/bin/python" ] || python3 -m venv "$out/venv"
"$out/venv/bin/pip" install --quiet --requirement "$here/requirements.txt"
OMP_NUM_THREADS=1 "$out/venv/bin/python" "$here/train.py" --out "$out" --seed "${2:-1}"
"$out/venv/bin/python" "$here/check.py" --model "$out" --expected "$out/expected-logits.json"
