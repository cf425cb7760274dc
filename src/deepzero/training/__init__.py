"""One readable training loop, bitwise checkpoints, and places for measurements to go."""

from deepzero.environment import hardware, versions
from deepzero.training.batch_reader import Batches
from deepzero.training.callbacks import Callback, EarlyStopping
from deepzero.training.checkpoint import Checkpoint, CheckpointStore, Restored, read_checkpoint
from deepzero.training.checkpoint_contents import Best
from deepzero.training.evaluation import Scores, accuracy, eval_mode, evaluate, measured
from deepzero.training.gradient_sources import Autograd, GradientSource
from deepzero.training.loggers import MLflow, TensorBoard, WandB, open_logger
from deepzero.training.metrics import JsonLines, Sink, read_metrics
from deepzero.training.model_file import ModelFile
from deepzero.training.progress import ProgressBar
from deepzero.training.run_folder import RunFolder, command_of, read_record, require_made_by
from deepzero.training.run_result import Result, plot_run
from deepzero.training.shared_run import SharedRun
from deepzero.training.stop_request import SharedStop, StoppedError, StopRequest
from deepzero.training.trainer import Trainer
from deepzero.training.training_config import TrainingConfig, warmup_cosine

__all__ = [
    "Autograd",
    "Batches",
    "Best",
    "Callback",
    "Checkpoint",
    "CheckpointStore",
    "EarlyStopping",
    "GradientSource",
    "JsonLines",
    "MLflow",
    "ModelFile",
    "ProgressBar",
    "Restored",
    "Result",
    "RunFolder",
    "Scores",
    "SharedRun",
    "SharedStop",
    "Sink",
    "StopRequest",
    "StoppedError",
    "TensorBoard",
    "Trainer",
    "TrainingConfig",
    "WandB",
    "accuracy",
    "command_of",
    "eval_mode",
    "evaluate",
    "hardware",
    "measured",
    "open_logger",
    "plot_run",
    "read_checkpoint",
    "read_metrics",
    "read_record",
    "require_made_by",
    "versions",
    "warmup_cosine",
]
