"""Reference simulations: made once on the fine grid, kept on disk under a hash of their settings."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from deepzero.data.data_files import candidate_folders
from deepzero.errors import RunFolderError
from deepzero.files import (
    make_folder,
    read_at_most,
    read_from,
    read_tensors,
    replace_file,
    tensor_bytes,
    tensors_in,
    to_json,
)
from deepzero.tasks.correction.correction_config import FlowConfig
from deepzero.tasks.correction.wake import Flows, WakeFlow, downsampled
from deepzero.tasks.staged_run import alone
from deepzero.training import StoppedError, StopRequest
from deepzero.training.run_folder import writing

NAME = "wake-flow"
FORMAT = 1
"""Of the files; another one is another folder."""
FRAMES, STATE, SETTINGS = "frames.safetensors", "unfinished.safetensors", "settings.json"
SAVE_SECONDS = 30.0

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Reference:
    """Frames of the fine simulations on the grid of the source.

    Attributes:
        training: ``[simulations, frames, 2, X+1, Y+1]`` float32.
        test: likewise.
        training_reynolds: ``[simulations, 1]``.
        test_reynolds: likewise.
        probe: v_x behind the cylinder at every step from the first, ``[steps, simulations]``, training ones first.
    """

    training: Float[Tensor, "s t 2 x1 y1"]
    test: Float[Tensor, "r t 2 x1 y1"]
    training_reynolds: Float[Tensor, "s 1"]
    test_reynolds: Float[Tensor, "r 1"]
    probe: Float[Tensor, "steps n"]

    def to_bytes(self) -> bytes:
        """The frames, for a checksum."""
        return b"".join(part.contiguous().numpy().tobytes() for part in (self.training, self.test))

    @property
    def scales(self) -> tuple[float, float, float]:
        """Standard deviations of :math:`|v_x|`, :math:`|v_y|` and the Reynolds number over the training simulations."""
        size = self.training.abs()
        parts = (size[:, :, 0, :, :-1], size[:, :, 1, :-1, :], self.training_reynolds)
        found = [float(part.double().std(correction=0)) for part in parts]
        return found[0], found[1], found[2] or 1.0


def reference(
    config: FlowConfig, *, data_dir: str | Path | None = None, stop: StopRequest, progress: Progress | None = None
) -> Reference:
    """The reference simulations of a configuration: read from disk, or made and kept.

    Args:
        config: of the flows.
        data_dir: folder in which they are kept; by default ``$DEEPZERO_DATA/wake-flow``, else ``data/wake-flow``.
        stop: looked at after every step; the steps so far are kept.
        progress: called with steps done and steps in all.

    Raises:
        StoppedError: on request.
        RunFolderError: the folder cannot be written, or holds other files under that hash.
    """
    folder = folder_of(config, data_dir)
    with alone(folder, stop):
        if not (folder / FRAMES).exists():
            with stop.saving():
                stop.begin()
                _make(config, folder, stop, progress)
        again = "delete it, and the simulations are made again"
        found = read_tensors(folder / FRAMES, advice=again)
    with read_from(folder / FRAMES, advice=again):
        return _split(config, found)


def folder_of(config: FlowConfig, data_dir: str | Path | None = None) -> Path:
    """The folder of the reference simulations of a configuration."""
    roots = candidate_folders(NAME, data_dir)
    return roots[0] / f"{NAME}-{_digest(config)}"


def _settings(config: FlowConfig) -> bytes:
    return to_json({"format": FORMAT, **asdict(config)})


def _digest(config: FlowConfig) -> str:
    return hashlib.sha256(_settings(config)).hexdigest()[:12]


def _holds(path: Path, content: bytes) -> bool:
    try:
        return read_at_most(path, len(content)) == content
    except (OSError, ValueError):
        return False


def _make(config: FlowConfig, folder: Path, stop: StopRequest, progress: Progress | None) -> None:
    """Simulate, from the state of an interrupted process if there is one."""
    with writing(folder):
        make_folder(folder)
        if (folder / SETTINGS).exists() and not _holds(folder / SETTINGS, _settings(config)):
            raise RunFolderError(f"{folder} holds simulations of other settings; move it away")
        replace_file(folder / SETTINGS, _settings(config))
    flow = WakeFlow(2 * config.resolution, tolerance=config.tolerance)
    begin = flow.initial([*config.training, *config.test])
    work = _Unfinished.load(folder, begin)
    total, saved = config.warmup + config.frames, time.monotonic()
    while work.step < total:
        if work.step >= config.warmup:
            work.frames.append(downsampled(work.velocity))
        work.velocity = flow.step(work.velocity, begin.reynolds)
        work.probe.append(work.velocity[:, 0, config.resolution, 5 * config.resolution // 2].clone())
        work.step += 1
        if progress is not None:
            progress(work.step, total)
        if stop.reason is not None:
            work.save(folder)
            raise StoppedError(stop.reason)
        if time.monotonic() - saved > SAVE_SECONDS:
            work.save(folder)
            saved = time.monotonic()
    if not bool(work.velocity.isfinite().all()):
        raise RunFolderError(
            f"a reference simulation blew up; a resolution of {config.resolution} is too coarse for these Reynolds "
            "numbers, or the warm-up too long"
        )
    tensors = {"frames": torch.stack(work.frames, dim=1), "probe": torch.stack(work.probe)}
    with writing(folder):
        replace_file(folder / FRAMES, safetensors.torch.save(tensors))
        (folder / STATE).unlink(missing_ok=True)


@dataclass
class _Unfinished:
    """Simulations on their way."""

    step: int
    velocity: Tensor
    frames: list[Tensor]
    probe: list[Tensor]

    @classmethod
    def load(cls, folder: Path, begin: Flows) -> _Unfinished:
        """The state of an interrupted process; a broken file is as good as none."""
        try:
            found = tensors_in(tensor_bytes(folder / STATE))
            frames = list(found["frames"].unbind(1)) if "frames" in found else []
            work = cls(int(found["step"]), found["velocity"], frames, list(found["probe"]))
        except (OSError, ValueError, KeyError, RuntimeError, IndexError):
            return cls(0, begin.velocity, [], [])
        fits = work.velocity.shape == begin.velocity.shape and len(work.probe) == work.step >= len(frames)
        return work if fits else cls(0, begin.velocity, [], [])

    def save(self, folder: Path) -> None:
        """Write the state."""
        tensors = {"step": torch.tensor(self.step), "velocity": self.velocity, "probe": torch.stack(self.probe)}
        if self.frames:
            tensors["frames"] = torch.stack(self.frames, dim=1)
        with writing(folder):
            replace_file(folder / STATE, safetensors.torch.save(tensors))


def _split(config: FlowConfig, found: dict[str, Tensor]) -> Reference:
    cut = len(config.training)
    reynolds = torch.tensor([*config.training, *config.test], dtype=torch.float32).unsqueeze(1)
    frames = found["frames"]
    return Reference(frames[:cut], frames[cut:], reynolds[:cut], reynolds[cut:], found["probe"])


def shedding(probe: Float[Tensor, " steps"]) -> float:
    """The strongest frequency of a signal that is sampled once a unit of time.

    Example:
        >>> times = torch.arange(1000)
        >>> round(shedding(torch.sin(2 * torch.pi * times / 125)), 4)
        0.008
    """
    spectrum = torch.fft.rfft(
        (probe - probe.mean()) * torch.hann_window(len(probe), dtype=probe.dtype), n=8 * len(probe)
    )
    return int(spectrum.abs().argmax()) / (8 * len(probe))
