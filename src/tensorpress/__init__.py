"""Smaller neural networks by tensor decomposition, in files as small as the information in them.

A model is planned (`plan`), pressed (`press`), trained (`finetune`) and saved. There are three ways
to save one:

- `save` writes one ``.tpz`` file, quantized and entropy coded: the smallest, for models that are
  finished; `load` builds the model from it.
- `save_checkpoint` writes a folder of safetensors in Hugging Face's layout with the values as they
  are, for models that are trained on, served, or too large for one file; `load_checkpoint` is the
  way back.
- `encode` rounds any model, or the state dict of a safetensors file, to a number of bits or bytes
  without training; `decode` returns the tensors by name.
"""

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
from tensorpress.quantize.encode import EncodeResult, decode, encode
from tensorpress.quantize.train_for_size import train_for_size
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.sensitivity.measure_layers import sensitivity
from tensorpress.train import finetune

__version__ = "0.2.0"

__all__ = [  # noqa: RUF022 - by task
    # plan
    "LayerPlan",
    "Plan",
    "plan",
    "scheme",
    "sensitivity",
    # press
    "materialize",
    "press",
    "press_checkpoint",
    "press_layer",
    "unpress",
    "unpress_layer",
    # calibrate
    "Calibration",
    # train
    "factor_norms",
    "finetune",
    "train_for_size",
    # save, load, export
    "EncodeResult",
    "StepQuantizer",
    "UniformQuantizer",
    "check_onnx",
    "decode",
    "encode",
    "export_onnx",
    "inspect",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
    # build and measure models
    "load_model",
    "measure",
    # errors
    "CorruptFileError",
    "DataNotFoundError",
    "InvalidArgumentError",
    "ModelMismatchError",
    "TensorPressError",
]
