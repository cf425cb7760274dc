#!/usr/bin/env bash
# Records of speed, all of them, in about 25 minutes of a machine that is left alone; bench goes on where it was stopped.
# Peers that are not installed are left out: pip install torchzero polystep. Needs '.[all]' and a checkout.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
records=benchmarks/records

deepzero bench all --threads 1 --seconds 400 --resume --out $records/speed-1-thread.json
deepzero bench all --threads 2 --seconds 300 --growth --resume --out $records/speed-2-threads.json
python benchmarks/peers.py --out $records/peers.json
python benchmarks/speed_gate.py --record
python benchmarks/startup.py --out $records/startup.json
python benchmarks/speed_page.py
