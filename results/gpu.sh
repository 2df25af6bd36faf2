#!/usr/bin/env bash
# All that a CUDA GPU has to tell, within ten minutes, in a fresh clone with requirements.txt installed:
# a table, and results/gpu.csv. Options are those of gpu.py; a rehearsal without GPU:
#   results/gpu.sh --device cpu --sizes S --no-compile --batch-size 8 --envs 1 --repeats 1 --train-minutes 0
set -euo pipefail
cd "$(dirname "$0")/.."
exec "${PYTHON:-python}" results/gpu.py "$@"
