"""The check of a GPU, stage by stage: tests, speed, a training with a resume. Start it with ``gpu_check.sh``.

Every stage is a process of its own with a limit of its own; the next one starts whatever happened. The record is
written after every stage, and a stage writes what it has found as it goes, so that a cut-off loses nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_check_speed import speed
from gpu_check_training import continued_run, training

from deepzero.measure import measurement_record
from deepzero.measure.measurement_record import heading, write_record

ROOT = Path(__file__).resolve().parents[1]
NEEDED_BY_TESTS = ("pytest", "pytest_timeout", "hypothesis", "beartype")
Note = Callable[[dict[str, Any]], None]


LIMITS = {
    "tests-conformance": 65,
    "tests-draws": 55,
    "tests-rules": 50,
    "tests-kernels": 75,
    "speed-digits": 35,
    "speed-cnn": 45,
    "speed-resnet20": 120,
    "speed-transformer-block": 45,
    "speed-lora-gpt": 45,
    "training": 55,
}
"""Seconds of each stage; together less than 10 minutes."""

TESTED = {
    "tests-kernels": " ".join(f"tests/graph/test_graph_cuda_{what}.py" for what in ("kernels", "rows", "attention"))
}
"""Stage -> its tests, where they are not those of tests/gpu."""

MOST_WORKERS = 8
"""Processes that test at once on a GPU, if pytest-xdist is there: one alone keeps the GPU idle, launching kernels."""

ENDED = re.compile(
    r"(?P<test>tests/\S+?\.py::.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED)\b.*\["
    r"|\[gw\d+\] \[ *\d+%\] (?P<outcome_there>PASSED|FAILED|ERROR|SKIPPED) (?P<test_there>tests/\S+?\.py::.+?)\s*$"
)
"""A line of ``pytest -v`` by itself, and of one with workers."""

SELECTED_ON_CPU = {"tests-rules": "language or encoder or (structure and (residual or dropout or tied))"}
"""A dry run tests less: the CPU has tests of its own."""


def main() -> int:
    """The chosen stages, then a summary; 0 if every one of them passed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the record and of the logs")
    parser.add_argument("--data-dir", type=Path, help="folder with CIFAR-10; images are made up by default")
    parser.add_argument("--only", nargs="+", choices=tuple(LIMITS), default=tuple(LIMITS))
    parser.add_argument("--run", type=Path, help="then go on with a training of ResNet-20 in this folder")
    parser.add_argument("--run-seconds", type=float, default=600.0, help="how long (default: 10 minutes)")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies the stages' limits, on a busy machine")
    parser.add_argument("--stage", choices=tuple(LIMITS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no CUDA device here; --device cpu makes a dry run", file=sys.stderr)
        return 2
    if options.stage is not None:
        return run_stage(options)
    return check(options)


def check(options: argparse.Namespace) -> int:
    """Run the stages one after another, and write the record after each."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # so that a stage ends with the check
    options.out.mkdir(parents=True, exist_ok=True)
    record: dict[str, Any] = {
        **heading(environment(options.device), command=command()),
        "device": options.device,
        "dry_run": options.device == "cpu",
        "stages": {},
    }
    if record["dry_run"]:
        record["note"] = "a dry run of the check on a CPU, at a small scale: it says nothing about any GPU"
    for name in options.only:
        print(f"==> {name} (at most {options.patience * LIMITS[name]:.0f} s)", flush=True)
        record["stages"][name] = attempt(name, options)
        write_record(options.out / "gpu-check.json", record)
        outcome = record["stages"][name]
        print(f"<== {name}: {outcome['status']}, {outcome['seconds']:.0f} s", flush=True)
    failed = [name for name, stage in record["stages"].items() if stage["status"] not in ("passed", "skipped")]
    if options.run is not None:
        record["run"] = continued_run(options.run, options.device, options.data_dir, options.run_seconds)
        write_record(options.out / "gpu-check.json", record)
    print(f"record: {options.out / 'gpu-check.json'}; not passed: {', '.join(failed) or 'none'}")
    return int(bool(failed))


def attempt(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """One stage in a process of its own: its status, seconds and findings."""
    found, log = options.out / f"{name}.json", options.out / f"{name}.log"
    found.unlink(missing_ok=True)
    chosen = ["--device", options.device, "--out", str(options.out), "--stage", name]
    if options.data_dir is not None:
        chosen += ["--data-dir", str(options.data_dir)]
    start, limit = time.monotonic(), options.patience * LIMITS[name]
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__, *chosen], stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code: int | None = process.wait(limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    result = json.loads(found.read_text()) if found.exists() else {}
    status = result.pop("status", None) or {0: "passed", None: "cut off at its limit"}.get(code, f"failed ({code})")
    ended = {"status": status, "seconds": round(time.monotonic() - start, 1), "limit": limit, **result}
    if status not in ("passed", "skipped"):
        ended["last_words"] = log.read_text(errors="replace").replace(f"{ROOT}/", "").splitlines()[-25:]
    return ended


def run_stage(options: argparse.Namespace) -> int:
    """The work of a stage's process."""
    path = options.out / f"{options.stage}.json"
    device = torch.device("cuda", 0) if options.device == "cuda" else torch.device("cpu")

    def note(values: dict[str, Any]) -> None:
        write_record(path, values)

    kind, _, case = options.stage.partition("-")
    if kind == "tests":
        return tests(options.stage, options, note)
    if kind == "speed":
        speed(case, device, note)
    else:
        training(device, options.out, options.data_dir, note)
    return 0


def tests(stage: str, options: argparse.Namespace, note: Note) -> int:
    """The tests of a stage on the device."""
    missing = [name for name in NEEDED_BY_TESTS if importlib.util.find_spec(name) is None]
    if missing:
        note({"status": "skipped", "why": f"not installed: {', '.join(missing)} (pip install -e '.[test]')"})
        return 0
    file = TESTED.get(stage, f"tests/gpu/test_gpu_{stage.removeprefix('tests-')}.py")
    selected = SELECTED_ON_CPU.get(stage) if options.device == "cpu" else None
    command = [sys.executable, "-m", "pytest", "-v", "--tb=short", "-p", "no:cacheprovider", *file.split()]
    command += ["-k", selected] if selected else []
    if options.device == "cuda" and importlib.util.find_spec("xdist") is not None:
        # pytest-benchmark, where it is installed, warns of workers, and the tests make errors of warnings.
        command += ["-n", str(min(MOST_WORKERS, os.cpu_count() or 1)), "-p", "no:benchmark"]
    variables = {**os.environ, **({"DEEPZERO_GPU_TESTS": "cpu"} if options.device == "cpu" else {})}
    results: dict[str, list[str]] = {"passed": [], "failed": [], "error": [], "skipped": []}
    with subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="")
            ended = ENDED.match(line)
            if ended:
                outcome = ended["outcome"] or ended["outcome_there"]
                results[outcome.lower()].append((ended["test"] or ended["test_there"]).split("::", 1)[1])
                note(counted(file, selected, results))
    note(counted(file, selected, results))
    ran = len(results["passed"]) > 0
    return running.returncode if ran or running.returncode else 1


def counted(file: str, selected: str | None, results: dict[str, list[str]]) -> dict[str, Any]:
    """Number of tests by outcome, and the names of those that did not pass."""
    return {
        "file": file,
        "selected": selected,
        **{outcome: len(names) for outcome, names in results.items()},
        "not_passed": sorted(results["failed"] + results["error"]),
    }


def command() -> str:
    """The command line that starts all this again; where the record went does not matter."""
    words = iter(sys.argv[1:])
    kept = [word for word in words if word != "--out" or not next(words, "")]
    return " ".join(["bash benchmarks/gpu_check.sh", *kept])


def environment(kind: str) -> dict[str, Any]:
    """Hardware, versions, and load of the machine."""
    device = torch.device(kind)
    hardware = measurement_record.environment(device)
    cudnn = torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
    versions, load = hardware.pop("versions"), hardware.pop("load_average_before")
    found: dict[str, Any] = {
        "hardware": hardware,
        "versions": {**versions, "cuda": torch.version.cuda, "cudnn": cudnn},
        "load_before": None if load is None else load[0],
    }
    if kind == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found["gpu"] = {
            "name": properties.name,
            "memory": properties.total_memory,
            "sm": properties.multi_processor_count,
        }
    return found


if __name__ == "__main__":
    sys.exit(main())
