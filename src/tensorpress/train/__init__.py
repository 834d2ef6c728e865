"""Fine-tuning, distillation and quantization-aware training, resumable, on any device."""

from tensorpress.train.config import Distillation, TrainConfig, train_config
from tensorpress.train.evaluate import Evaluation, evaluate
from tensorpress.train.fit import finetune, fit
from tensorpress.train.history import EpochMetrics, History
from tensorpress.train.quantization_aware import StraightThrough

__all__ = [
    "Distillation",
    "EpochMetrics",
    "Evaluation",
    "History",
    "StraightThrough",
    "TrainConfig",
    "evaluate",
    "finetune",
    "fit",
    "train_config",
]
