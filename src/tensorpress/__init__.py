"""Smaller neural networks by tensor decomposition, and files as small as the information in them.

A model is planned (`plan`), pressed (`press`), trained (`finetune`) and saved, in one of three
ways:

- `save` writes one ``.tpz`` file, quantized and entropy coded: the smallest file, for models that
  are finished. `load` builds the model from it.
- `save_checkpoint` writes a folder of safetensors in Hugging Face's layout, with unchanged values,
  for models that will be trained or served, or are too large for one file. `load_checkpoint` loads
  it.
- `encode` rounds any model, or the state dict of a safetensors file, to a number of bits or bytes
  without training, or stores it losslessly; `decode` returns the tensors by name.
  `encode_checkpoint` does the same tensor by tensor, for folders larger than memory.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from tensorpress.errors import (
    BudgetMetError,
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    ModelMismatchError,
    ModelRunError,
    TensorPressError,
)
from tensorpress.hugging_face.import_hook import register_on_import

if TYPE_CHECKING:
    from tensorpress.calibrate.calibration import Calibration
    from tensorpress.calibrate.loss_curvature import LossCurvature
    from tensorpress.checkpoints.encode_checkpoint import decode_checkpoint, encode_checkpoint
    from tensorpress.checkpoints.load import load_checkpoint
    from tensorpress.checkpoints.press_checkpoint import press_checkpoint
    from tensorpress.checkpoints.save import save_checkpoint
    from tensorpress.checkpoints.unpress_checkpoint import unpress_checkpoint
    from tensorpress.codec.inspect import inspect
    from tensorpress.codec.quantizers import StepQuantizer, UniformQuantizer
    from tensorpress.codec.save_load import load, save
    from tensorpress.compress.comparison import compare
    from tensorpress.compress.compress import compress
    from tensorpress.compress.fidelity import fidelity
    from tensorpress.compress.model_report import report
    from tensorpress.compress.result import CompressResult
    from tensorpress.compress.verdict import Fidelity
    from tensorpress.export.onnx import export_onnx
    from tensorpress.export.onnx_check import check_onnx
    from tensorpress.measure import measure
    from tensorpress.measure.perplexity import perplexity
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
    # all in one call
    "CompressResult",
    "Fidelity",
    "compress",
    "compare",
    "fidelity",
    "report",
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
    "LossCurvature",
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
    "decode_checkpoint",
    "encode",
    "encode_checkpoint",
    "export_onnx",
    "inspect",
    "load",
    "load_checkpoint",
    "save",
    "save_checkpoint",
    "unpress_checkpoint",
    # build and measure models
    "load_model",
    "measure",
    "perplexity",
    # errors
    "CorruptFileError",
    "DataNotFoundError",
    "BudgetMetError",
    "InvalidArgumentError",
    "ModelMismatchError",
    "ModelRunError",
    "TensorPressError",
]

_HOMES = {
    "CompressResult": "tensorpress.compress.result",
    "Fidelity": "tensorpress.compress.verdict",
    "compress": "tensorpress.compress.compress",
    "compare": "tensorpress.compress.comparison",
    "fidelity": "tensorpress.compress.fidelity",
    "report": "tensorpress.compress.model_report",
    "LayerPlan": "tensorpress.planning",
    "Plan": "tensorpress.planning",
    "plan": "tensorpress.planning",
    "scheme": "tensorpress.schemes.registry",
    "sensitivity": "tensorpress.sensitivity.measure_layers",
    "materialize": "tensorpress.press.press",
    "press": "tensorpress.press.press",
    "press_checkpoint": "tensorpress.checkpoints.press_checkpoint",
    "press_layer": "tensorpress.schemes.press_layer",
    "unpress": "tensorpress.press.unpress",
    "unpress_layer": "tensorpress.schemes.press_layer",
    "Calibration": "tensorpress.calibrate.calibration",
    "LossCurvature": "tensorpress.calibrate.loss_curvature",
    "factor_norms": "tensorpress.press.factor_norms",
    "finetune": "tensorpress.train",
    "train_for_size": "tensorpress.quantize.train_for_size",
    "EncodeResult": "tensorpress.quantize.encode",
    "StepQuantizer": "tensorpress.codec.quantizers",
    "UniformQuantizer": "tensorpress.codec.quantizers",
    "check_onnx": "tensorpress.export.onnx_check",
    "decode": "tensorpress.quantize.encode",
    "encode": "tensorpress.quantize.encode",
    "decode_checkpoint": "tensorpress.checkpoints.encode_checkpoint",
    "encode_checkpoint": "tensorpress.checkpoints.encode_checkpoint",
    "export_onnx": "tensorpress.export.onnx",
    "inspect": "tensorpress.codec.inspect",
    "load": "tensorpress.codec.save_load",
    "load_checkpoint": "tensorpress.checkpoints.load",
    "save": "tensorpress.codec.save_load",
    "save_checkpoint": "tensorpress.checkpoints.save",
    "unpress_checkpoint": "tensorpress.checkpoints.unpress_checkpoint",
    "load_model": "tensorpress.models.loading",
    "measure": "tensorpress.measure",
    "perplexity": "tensorpress.measure.perplexity",
}
"""The module of every public name. It is imported when the name is first used, so that `import
tensorpress` and the help of the command line do not import torch. """


def __getattr__(name: str) -> Any:
    """Return a public name from its module (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    package = sys.modules.get(f"{__name__}.{name}")
    if package is not None:  # for `import tensorpress.press.press as p`
        value.__dict__ = package.__dict__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, imported or not."""
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """A package whose `press` is the function, even after the subpackage `press` is imported."""

    def __setattr__(self, name: str, value: object) -> None:
        # Python sets a submodule as attribute on import; a public name takes precedence.
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package

register_on_import()
