"""One readable training loop, bitwise checkpoints, and places for measurements to go."""

from deepzero.training.checkpoint import Checkpoint, CheckpointStore, Restored, read_checkpoint
from deepzero.training.config import TrainingConfig
from deepzero.training.environment import hardware, versions
from deepzero.training.evaluation import Scores, eval_mode, evaluate
from deepzero.training.loggers import MLflow, TensorBoard, WandB, open_logger
from deepzero.training.loop import Best, Trainer
from deepzero.training.metrics import JsonLines, Sink, read_metrics
from deepzero.training.plot import plot_run
from deepzero.training.progress import ProgressBar
from deepzero.training.run_folder import RunFolder, read_record
from deepzero.training.schedule import warmup_cosine
from deepzero.training.sources import Autograd, GradientSource
from deepzero.training.stop import SharedStop, StopRequest

__all__ = [
    "Autograd",
    "Best",
    "Checkpoint",
    "CheckpointStore",
    "GradientSource",
    "JsonLines",
    "MLflow",
    "ProgressBar",
    "Restored",
    "RunFolder",
    "Scores",
    "SharedStop",
    "Sink",
    "StopRequest",
    "TensorBoard",
    "Trainer",
    "TrainingConfig",
    "WandB",
    "eval_mode",
    "evaluate",
    "hardware",
    "open_logger",
    "plot_run",
    "read_checkpoint",
    "read_metrics",
    "read_record",
    "versions",
    "warmup_cosine",
]
