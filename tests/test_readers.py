"""Every reader of files, on files that are damaged or hostile: it reads, or raises one clear error that names the file.

The damages are those of ``damage.py``, drawn by seeds, so that what fails can be had again.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import struct
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import damage
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import deepzero as dz
from deepzero.data.cifar10 import read_binary, read_parquet
from deepzero.data.columns import read_columns
from deepzero.data.detection import detect
from deepzero.data.idx import read_idx
from deepzero.data.image_folders import read_image_folder
from deepzero.data.npz import read_inputs, read_npz
from deepzero.data.table import read_table
from deepzero.errors import CheckpointError, InvalidInputError, RunFolderError
from deepzero.executors.journal_file import summary
from deepzero.files import DEPTH, JSON_BYTES, json_lines, json_object, read_tensors
from deepzero.measure.bench_record import BenchRecord
from deepzero.measure.benchmark import Settings
from deepzero.recipes.configurations import config_file
from deepzero.report import page_of
from deepzero.report.figures import Document, Figure, Series, Table
from deepzero.report.folder_contents import results
from deepzero.training import Result, read_metrics
from deepzero.training.checkpoint import CheckpointStore, read_checkpoint
from deepzero.training.loggers import Kept
from deepzero.training.run_folder import read_record

SEEDS = 40
"""Damages of each file."""
FEWER = 12
"""Damages of each file of a run whose page is drawn, which takes longer."""
SECONDS = 60
"""Time after which a reader is said to hang."""
FEW = 20_000_000
"""Bytes that a refusal may take at its height."""


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    """One damage after the other takes milliseconds; a reader that waits for something is interrupted."""

    def late(_signal: int, _frame: Any) -> None:
        raise TimeoutError(f"a reader took more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small run that has finished, with two checkpoints."""
    path = tmp_path_factory.mktemp("run") / "run"
    trained(path, epochs=2)
    assert len(list((path / "checkpoints").glob("step-*"))) == 2
    return path


def trained(out: Path, *, resume: bool | str = False, epochs: int) -> Result:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    x, y = torch.randn(8, 3), torch.randint(0, 2, (8,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    trainer = dz.Trainer(
        model,
        dz.CGE(model, loss=F.cross_entropy),
        optimizer,
        [(x, y)],
        validation=[(x, y)],
        monitor="validation_loss",
        scheduler=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10),
        out=out,
        checkpoint_steps=1,
        progress=False,
    )
    return trainer.fit(epochs, resume=resume)


# Makers of one file each, and its reader ------------------------------------------------------------------------------


def arrays() -> dict[str, Any]:
    draw = np.random.default_rng(0)
    return {"x": draw.integers(0, 255, (24, 6, 6)).astype(np.uint8), "y": np.arange(24) % 3}


def idx(path: Path) -> None:
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 4, 5, 6) + bytes(range(120)))


def idx_gz(path: Path) -> None:
    idx(path)
    path.write_bytes(gzip.compress(path.read_bytes()))


def cifar_binary(path: Path) -> None:
    path.write_bytes(bytes(3 * 3073))


def cifar_parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    picture = path.with_suffix(".png")
    Image.new("RGB", (32, 32), "red").save(picture)
    rows = [{"bytes": picture.read_bytes(), "path": None}] * 4
    parquet.write_table(pa.table({"img": rows, "label": [0, 1, 2, 3]}), path)
    picture.unlink()


def csv(path: Path) -> None:
    path.write_text("a,b,label\n" + "".join(f"{k},{k / 7},{'xy'[k % 2]}\n" for k in range(20)))


def table_parquet(path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"a": [0.5 * k for k in range(20)], "b": list(range(20)), "label": ["x", "y"] * 10}
    parquet.write_table(pa.table(columns), path)


def npz(path: Path) -> None:
    np.savez(path, **arrays())


def npz_compressed(path: Path) -> None:
    np.savez_compressed(path, **arrays())


def npy(path: Path) -> None:
    np.save(path, arrays()["x"])


def tensors(path: Path) -> None:
    save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3)}, path)


def settings(path: Path) -> None:
    from deepzero.recipes import find

    path.write_text(json.dumps(asdict(find("digits").config())))


def settings_toml(path: Path) -> None:
    path.write_text('recipe = "digits"\nseed = 3\n[training]\nepochs = 2\nlearning_rate = 0.5\n')


def lines(path: Path) -> None:
    path.write_text("".join(json.dumps({"kind": "step", "step": k, "loss": 0.5}) + "\n" for k in range(5)))


def document(path: Path) -> None:
    curve = Figure(title="f", x_label="x", y_label="y", series=[Series(name="s", x=[1, 2], y=[0.5, 0.25])])
    table = Table(title="t", columns=["a", "b"], rows=[["1", "2"]])
    found = Document(title="d", tables=[table], figures=[curve], facts={"k": 1}, cells=[{"labels": {}, "result": {}}])
    path.write_text(json.dumps(found.as_dict()))


def kept(path: Path) -> None:
    path.write_text('{"id": "abc"}\n{"kind": "step", "step": 3}\n')


def bench(path: Path) -> None:
    BenchRecord(Settings(), path, "bench", {}).write()


def journal(path: Path) -> None:
    with dz.QueryJournal(path, problem="p") as open_journal:
        open_journal.record({f"{k:032x}": k / 7 for k in range(20)})


def read_journal(path: Path) -> None:
    with dz.QueryJournal(path, problem="p") as found:
        found.lookup([f"{k:032x}" for k in range(20)])


def shown(path: Path) -> str:
    results(path)
    return page_of([path.parent])


Maker, Reader = Callable[[Path], None], Callable[[Path], Any]
FILES: dict[str, tuple[Maker, Reader]] = {
    "object.json": (document, json_object),
    "metrics.jsonl": (lines, lambda path: list(json_lines(path))),
    "read_metrics.jsonl": (lines, read_metrics),
    "weights.safetensors": (tensors, read_tensors),
    "results.json": (document, shown),
    "settings.json": (settings, config_file),
    "settings.toml": (settings_toml, config_file),
    "wandb.jsonl": (kept, lambda path: Kept(path.parent, "wandb")),
    "bench.json": (bench, lambda path: BenchRecord(Settings(), path, "bench", {}).resume()),
    "train-images-idx3-ubyte": (idx, read_idx),
    "train-images-idx3-ubyte.gz": (idx_gz, read_idx),
    "data_batch_1.bin": (cifar_binary, read_binary),
    "train-0.parquet": (cifar_parquet, read_parquet),
    "table.csv": (csv, read_table),
    "table.parquet": (table_parquet, read_table),
    "columns.parquet": (table_parquet, read_columns),
    "data.npz": (npz, read_npz),
    "compressed.npz": (npz_compressed, read_npz),
    "inputs.npz": (npz, read_inputs),
    "inputs.npy": (npy, read_inputs),
    "detected.npz": (npz, detect),
    "queries.sqlite": (journal, read_journal),
    "looked_at.sqlite": (journal, summary),
}


@pytest.mark.parametrize("name", FILES)
def test_a_reader_reads_or_says_what_is_wrong_with_the_file(name: str, tmp_path: Path) -> None:
    make, read = FILES[name]
    whole = tmp_path / "whole"
    whole.mkdir()
    make(whole / name)
    assert damage.outcome(lambda: read(whole / name)) == "read"
    refused = 0
    for seed in range(SEEDS):
        what = damage.copy_with_damage(whole, name, seed, tmp_path / "copy")
        try:
            said = damage.outcome(lambda: read(tmp_path / "copy" / name))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        refused += said != "read"
        assert said == "read" or name in said, f"{what}: {said}"
        assert "\n" not in said or "checkpoint" in said, f"{what}: {said}"
    assert refused > SEEDS / 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM"])
def test_a_damaged_image_is_read_or_named(kind: str, tmp_path: Path) -> None:
    for label in "ab":
        (tmp_path / "whole" / label).mkdir(parents=True)
        Image.new("RGB", (20, 20), "red").save(tmp_path / "whole" / label / f"x.{kind.lower()}")
    name = f"a/x.{kind.lower()}"
    for seed in range(SEEDS):
        what = damage.copy_with_damage(tmp_path / "whole", name, seed, tmp_path / "copy")
        try:
            said = damage.outcome(lambda: read_image_folder(tmp_path / "copy", 16))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert said == "read" or "copy/a" in said, f"{what}: {said}"


@pytest.mark.parametrize(
    "name",
    ["run.json", "summary.json", "metrics.jsonl", "ratios.json", "surface.json"],
)
def test_a_report_of_a_damaged_run_is_made_or_refused_in_words(name: str, run: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    _with_more(run, whole)
    for seed in range(FEWER):
        what = damage.copy_with_damage(whole, name, seed, tmp_path / "copy")
        try:
            said = damage.outcome(lambda: page_of([tmp_path / "copy"]))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert said == "read" or "copy" in said, f"{what}: {said}"


def _with_more(run: Path, to: Path) -> None:
    """The run with files that only some runs have."""
    import shutil

    shutil.copytree(run, to)
    (to / "ratios.json").write_text(json.dumps({"keep": {"weight": 0.5}, "queries": 3}))
    numbers = {"batch": 8, "slope": 0.5, "gradient_queries": 9, "weight_norm": 1.0, "gradient_norm": 2.0, "seed": 0}
    square = {"distances": [-1.0, 0.0, 1.0], "losses": [[1.0, 2.0, None]] * 3, "weights": "the selected weights"}
    (to / "surface.json").write_text(json.dumps({**numbers, **square}))


@pytest.mark.parametrize("name", ["run.json", "summary.json", "model.json", "model.safetensors", "model.pt2"])
def test_a_damaged_run_is_loaded_or_refused_in_words(name: str, run: Path, tmp_path: Path) -> None:
    for seed in range(SEEDS // 4 if name == "model.pt2" else SEEDS):
        what = damage.copy_with_damage(run, name, seed, tmp_path / "copy")
        try:
            said = damage.outcome(lambda: dz.load_run(tmp_path / "copy").outputs(torch.zeros(2, 3)))
        except Exception as error:
            raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error
        assert said == "read" or "copy" in said, f"{what}: {said}"


# Checkpoints: the older good one is never hidden ---------------------------------------------------------------------


def _newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("name", ["state.json", "tensors.safetensors"])
def test_a_damaged_checkpoint_does_not_hide_the_older_one(
    name: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    newest = _newest(run)
    for seed in range(SEEDS):
        inside = str((newest / name).relative_to(run))
        what = damage.copy_with_damage(run, inside, seed, tmp_path / "copy")
        store = CheckpointStore(
            tmp_path / "copy" / "checkpoints", run=json.loads((newest / "state.json").read_bytes())["run"]
        )
        restored = store.load()
        if restored.path.name == newest.name:  # harmless: nothing but spaces, or the order of keys
            assert restored.checkpoint.state == read_checkpoint(newest).state, what
        else:
            assert newest.name in restored.rejected[0], what
    (tmp_path / "copy" / "summary.json").unlink(missing_ok=True)
    assert trained(tmp_path / "copy", resume=True, epochs=2).stopped is None


HOSTILE_STATES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no_position": lambda state: state.pop("position"),
    "text_for_a_step": lambda state: state["position"].update(step="one"),
    "epoch_below_zero": lambda state: state["position"].update(epoch=-5),
    "losses_of_text": lambda state: state["position"].update(losses=["x"]),
    "learning_rate_of_text": lambda state: state["optimizer"]["param_groups"][0].update(lr="fast"),
    "scheduler_of_text": lambda state: state["scheduler"].update(last_epoch="x"),
    "scores_of_text": lambda state: state["best"].update(scores={"loss": "x"}),
    "no_source": lambda state: state.update(source=None),
    "metrics_before_the_start": lambda state: state.update(metrics_bytes=None),
    "empty": lambda state: state.clear(),
}
"""Changes of a state whose checksum is then made right again."""


@pytest.mark.parametrize("change", HOSTILE_STATES)
def test_a_hostile_checkpoint_with_a_right_checksum_does_not_hide_the_older_one(
    change: str, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "copy")
    (tmp_path / "copy" / "summary.json").unlink()
    newest = _newest(tmp_path / "copy")
    older = min((tmp_path / "copy" / "checkpoints").glob("step-*"))
    checkpoint = read_checkpoint(newest)
    identity = json.loads((newest / "state.json").read_bytes())["run"]
    HOSTILE_STATES[change](checkpoint.state)
    keep = {path: path.read_bytes() for path in older.iterdir()}
    CheckpointStore(newest.parent, run=identity).save(checkpoint)
    older.mkdir(exist_ok=True)
    for path, data in keep.items():
        path.write_bytes(data)
    with caplog.at_level("WARNING", logger="deepzero"):
        again = trained(tmp_path / "copy", resume=True, epochs=2)
    assert f"falling back to {older}" in caplog.text
    assert newest.name in caplog.text
    assert again.summary is not None
    assert again.summary["steps"] == 2
    whole = json.loads((run / "summary.json").read_bytes())
    assert again.summary["validation_loss"] == whole["validation_loss"]


# Bombs: what is announced, and no more ---------------------------------------------------------------------------------


def _height(read: Callable[[], Any]) -> int:
    """Bytes that a reader held at most."""
    tracemalloc.start()
    try:
        assert damage.outcome(read) != "read"
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_compressed_file_gives_no_more_than_its_header_announces(tmp_path: Path) -> None:
    path = tmp_path / "images.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 4, 4))
        for _ in range(128):
            file.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    assert _height(lambda: read_idx(path)) < FEW
    with pytest.raises(InvalidInputError, match=r"images\.gz.*32 bytes of values, but more follow"):
        read_idx(path)


def test_what_is_announced_and_not_there_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "images"
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 20, 30, 30) + bytes(100))
    assert _height(lambda: read_idx(path)) < FEW
    path.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1 << 31, 1 << 31, 1 << 31) + bytes(100))
    with pytest.raises(InvalidInputError, match="must fit into memory"):
        read_idx(path)
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (100000000000000,), }"
    start = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    (tmp_path / "x.npy").write_bytes(start + bytes(80))
    assert _height(lambda: read_inputs(tmp_path / "x.npy")) < FEW
    with zipfile.ZipFile(tmp_path / "x.npz", "w") as archive:
        archive.writestr("x.npy", start + bytes(80))
        archive.writestr("y.npy", start + bytes(80))
    assert _height(lambda: read_npz(tmp_path / "x.npz")) < FEW


def test_a_few_bytes_of_parquet_that_stand_for_many_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    column = pa.array(["x" * 1000] * 200_000)
    parquet.write_table(pa.table({"a": column, "label": column}), tmp_path / "many.parquet")
    assert (tmp_path / "many.parquet").stat().st_size < 1 << 20
    monkeypatch.setattr("deepzero.data.data_files.memory_here", lambda: 100e6)
    before = pa.total_allocated_bytes()
    with pytest.raises(InvalidInputError, match=r"many\.parquet says that it holds"):
        read_columns(tmp_path / "many.parquet")
    assert pa.default_memory_pool().max_memory() - before < 200e6


def test_json_has_a_size_a_depth_and_finite_numbers(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(4 << 30)  # takes no room on the disk
    assert _height(lambda: json_object(path)) < 3 * JSON_BYTES
    said = {
        "more than 67,108,864 bytes": None,
        f"more than {DEPTH} deep": b'{"a":' * 70 + b"1" + b"}" * 70,
        f"objects are more than {DEPTH} deep": b"[" * 100_000,
        "1e999 is not finite": b'{"a": 1e999}',
        "holds NaN": b'{"a": NaN}',
        "has 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
        "surrogates not allowed": b'{"a": "\\ud800"}',
        "can't decode": b'{"a": "\xff"}',
        "holds list": b"[]",
    }
    for reason, content in said.items():
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RunFolderError, match=reason) as caught:
            json_object(path, advice="do this")
        assert str(path) in str(caught.value)
        assert str(caught.value).endswith("do this")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes here")
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    for name, read in {
        "a.json": json_object,
        "a.safetensors": read_tensors,
        "a.bin": read_binary,
        "a": read_idx,
    }.items():
        os.mkfifo(tmp_path / name)
        assert name in damage.outcome(lambda path=tmp_path / name, read=read: read(path))  # type: ignore[misc]


def test_safetensors_of_another_size_than_announced_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors(path)
    with path.open("r+b") as file:
        file.truncate(8 << 30)
    assert _height(lambda: read_tensors(path)) < FEW
    path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    with pytest.raises(RunFolderError, match="no header of a safetensors file"):
        read_tensors(path)


def test_a_record_of_a_run_that_is_no_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_bytes(b"[" * 1000)
    with pytest.raises(RunFolderError, match=r"run\.json is damaged.*another --out"):
        read_record(tmp_path)


def test_no_checkpoint_of_a_wrong_step_is_used(run: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(run / "checkpoints" / "step-00000099")
