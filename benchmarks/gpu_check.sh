#!/usr/bin/env bash
# Is everything right, and how fast is it, on the GPU at hand? At most 10 minutes on one H100.
#
#   bash benchmarks/gpu_check.sh [--device cuda|cpu] [--out FOLDER] [--data-dir FOLDER] [--only STAGE ...]
#
# Needs a python with the project's dependencies ($PYTHON, else python3, else python) and nothing installed besides: the
# sources of this checkout are used. FOLDER/gpu-check.json is written again after every stage.
set -u
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
python=${PYTHON:-$(command -v python3 || command -v python)} || { echo "no python found; set PYTHON" >&2; exit 2; }
export PYTHONPATH="$here/src${PYTHONPATH:+:$PYTHONPATH}" MPLBACKEND=agg PYTHONUNBUFFERED=1
exec "$python" "$here/benchmarks/gpu_check.py" "$@"
