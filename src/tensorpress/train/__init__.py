"""Fine-tuning, distillation and quantization-aware training, resumable, on any device."""

from tensorpress.train.config import Distillation, TrainConfig, train_config
from tensorpress.train.evaluate import Evaluation, evaluate
from tensorpress.train.fit import finetune, fit
from tensorpress.train.history import EpochMetrics, History
from tensorpress.train.quantization_aware import StraightThrough
from tensorpress.train.task import Task

__all__ = [
    "Distillation",
    "EpochMetrics",
    "Evaluation",
    "History",
    "StraightThrough",
    "Task",
    "TrainConfig",
    "evaluate",
    "finetune",
    "fit",
    "train_config",
]
