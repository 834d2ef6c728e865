"""Smaller neural networks by tensor decomposition, in files as small as the information in them."""

from tensorpress.between import norms_between
from tensorpress.calibrate.kept import Calibration
from tensorpress.checkpoints.load import load_checkpoint
from tensorpress.checkpoints.save import save_checkpoint
from tensorpress.checkpoints.stream import press_checkpoint
from tensorpress.codec.file import load, save
from tensorpress.codec.inspect import inspect
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.codec.steps import StepQuantizer
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.export import check_onnx, export_onnx
from tensorpress.measure import measure
from tensorpress.models.loading import load_model
from tensorpress.planning import LayerPlan, Plan, SchemePlan, plan
from tensorpress.pressing import materialize, press
from tensorpress.rate.training import train_for_size
from tensorpress.rounding.encode import Encoded, decode, encode
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.sensitivity.scoring import sensitivity
from tensorpress.train import finetune
from tensorpress.unpressing import unpress

__version__ = "0.1.0"

__all__ = [
    "Calibration",
    "CorruptFileError",
    "DataNotFoundError",
    "Encoded",
    "InvalidArgumentError",
    "LayerPlan",
    "ModelMismatchError",
    "Plan",
    "SchemePlan",
    "StepQuantizer",
    "TensorPressError",
    "UniformQuantizer",
    "check_onnx",
    "decode",
    "encode",
    "export_onnx",
    "finetune",
    "inspect",
    "load",
    "load_checkpoint",
    "load_model",
    "materialize",
    "measure",
    "norms_between",
    "plan",
    "press",
    "press_checkpoint",
    "press_layer",
    "save",
    "save_checkpoint",
    "scheme",
    "sensitivity",
    "train_for_size",
    "unpress",
    "unpress_layer",
]
