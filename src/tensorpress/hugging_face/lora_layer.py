"""LoRA from PEFT on pressed layers, which are found by the names of the dense layers."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from peft.tuners.lora import model as lora_model
from peft.tuners.lora.layer import Linear, LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed


class PressedLinear(Linear):  # type: ignore[misc]
    """A pressed linear layer with adapters."""

    def _get_in_out_features(self, module: nn.Module) -> Any:
        if isinstance(module, Pressed):
            return module.spec.inputs, module.spec.outputs
        return super()._get_in_out_features(module)

    def merge(self, *_: Any, **__: Any) -> None:
        """Raise an error, because an adapter cannot be merged into factors.

        Raises
        ------
        InvalidArgumentError
            Always.
        """
        raise InvalidArgumentError(
            "an adapter cannot be merged into the factors of a pressed layer: save it, and merge "
            "it into the dense model written by `tensorpress export FOLDER --dense OUT`"
        )


def register() -> None:
    """Make PEFT support adapters on pressed layers."""
    module: Any = lora_model
    module.dispatch_default = _dispatch_pressed(module.dispatch_default)


def _dispatch_pressed(dispatch: Callable[..., Any]) -> Callable[..., Any]:
    """Extend the function that chooses the adapter class of a layer to pressed layers."""

    @wraps(dispatch)
    def dispatch_default(target: nn.Module, adapter: str, *args: Any, **options: Any) -> Any:
        layer = target.get_base_layer() if isinstance(target, LoraLayer) else target
        if options.get("parameter_name") is None and _is_pressed_linear(layer):
            options.pop("parameter_name", None)
            return PressedLinear(target, adapter, *args, **options)
        return dispatch(target, adapter, *args, **options)

    return dispatch_default


def _is_pressed_linear(layer: nn.Module) -> bool:
    if isinstance(layer, Pressed):
        return layer.spec.kind == "Linear"
    return isinstance(layer, nn.Linear | Conv1D) and factorized_weight(layer) is not None
