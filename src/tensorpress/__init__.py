"""Smaller neural networks by tensor decomposition, in files as small as the information in them."""

from tensorpress.codec.file import load, save
from tensorpress.codec.inspect import inspect
from tensorpress.codec.quantize import UniformQuantizer
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    TensorPressError,
)
from tensorpress.measure import measure
from tensorpress.planning import LayerPlan, Plan, SchemePlan, plan
from tensorpress.pressing import materialize, press
from tensorpress.schemes.press_layer import press_layer, unpress_layer
from tensorpress.schemes.registry import scheme
from tensorpress.train import finetune

__version__ = "0.1.0"

__all__ = [
    "CorruptFileError",
    "DataNotFoundError",
    "InvalidArgumentError",
    "LayerPlan",
    "ModelMismatchError",
    "Plan",
    "SchemePlan",
    "TensorPressError",
    "UniformQuantizer",
    "finetune",
    "inspect",
    "load",
    "materialize",
    "measure",
    "plan",
    "press",
    "press_layer",
    "save",
    "scheme",
    "unpress_layer",
]
