"""Smaller neural networks by tensor decomposition, in files as small as the information in them."""

from tensorpress.calibrate.calibration import Calibration
from tensorpress.checkpoints.load import load_checkpoint
from tensorpress.checkpoints.press_checkpoint import press_checkpoint
from tensorpress.checkpoints.save import save_checkpoint
from tensorpress.codec.inspect import inspect
from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
from tensorpress.codec.save_load import load, save
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.export.onnx import check_onnx, export_onnx
from tensorpress.measure import measure
from tensorpress.models.loading import load_model
from tensorpress.planning import LayerPlan, Plan, plan
from tensorpress.press.factor_norms import factor_norms
from tensorpress.press.press import materialize, press
from tensorpress.press.unpress import unpress
from tensorpress.quantize.encode import Encoded, decode, encode
from tensorpress.quantize.train_for_size import train_for_size
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.sensitivity.measure_layers import sensitivity
from tensorpress.train import finetune

__version__ = "0.2.0"

__all__ = [
    "Calibration",
    "CorruptFileError",
    "DataNotFoundError",
    "Encoded",
    "InvalidArgumentError",
    "LayerPlan",
    "ModelMismatchError",
    "Plan",
    "StepQuantizer",
    "TensorPressError",
    "UniformQuantizer",
    "check_onnx",
    "decode",
    "encode",
    "export_onnx",
    "factor_norms",
    "finetune",
    "inspect",
    "load",
    "load_checkpoint",
    "load_model",
    "materialize",
    "measure",
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
