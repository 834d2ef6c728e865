"""Registration with transformers: quantization method, loading and saving."""

import os
from collections.abc import Callable
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import Any

from torch import nn
from transformers.configuration_utils import PretrainedConfig
from transformers.modeling_utils import PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING

from tensorpress.errors import ModelMismatchError
from tensorpress.hugging_face.factor_names import factorized_weights
from tensorpress.hugging_face.pressed_config import (
    CONFIG,
    METHOD,
    PLAN,
    QUANTIZATION,
    REFUSAL,
    WEIGHTS,
    is_marked,
    read_plan,
)
from tensorpress.hugging_face.quantizer import TensorPressConfig, TensorPressQuantizer
from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.utils.formatting import format_names
from tensorpress.utils.lazy_tensor import LazyTensor

RENAMED = "save_original_format"
"""The option of ``save_pretrained`` for the tensor names of a model's original checkpoint."""


def register() -> None:
    """Make transformers load and save pressed models."""
    # The same as register_quantization_config and register_quantizer, which older versions lack.
    AUTO_QUANTIZATION_CONFIG_MAPPING[METHOD] = TensorPressConfig
    AUTO_QUANTIZER_MAPPING[METHOD] = TensorPressQuantizer
    setattr(PretrainedConfig, WEIGHTS, _RefusalOfOthers())
    # With this mark, transformers does not initialize a tensor. Some models would otherwise
    # initialize weights that a pressed layer rebuilds from factors.
    LazyTensor._is_hf_initialized = True  # type: ignore[attr-defined]
    PreTrainedModel.from_pretrained = classmethod(
        _load_pressed(PreTrainedModel.from_pretrained.__func__)
    )
    PreTrainedModel.save_pretrained = _save_pressed(PreTrainedModel.save_pretrained)


class _RefusalOfOthers:
    """The attribute ``transformers_weights`` of configs, which hides the refusal of pressed models.

    The refusal is still written to files: `delattr`, by which transformers removes a file name from
    a config before saving, does not remove it.
    """

    def __get__(self, config: Any, kind: type | None = None) -> Any:
        value = None if config is None else vars(config).get(WEIGHTS)
        return None if value == REFUSAL else value

    def __set__(self, config: Any, value: Any) -> None:
        vars(config)[WEIGHTS] = value

    def __delete__(self, config: Any) -> None:
        if vars(config).get(WEIGHTS) != REFUSAL:
            vars(config).pop(WEIGHTS, None)


def _load_pressed(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``from_pretrained`` that never leaves pressed layers uninitialized."""

    @wraps(load)
    def from_pretrained(kind: type, place: Any, *args: Any, **options: Any) -> Any:
        plan = _missing_plan(place, options.get("config"))
        if plan is not None:
            options[QUANTIZATION] = TensorPressConfig(plan.to_dict())
        model, info = load(kind, place, *args, **{**options, "output_loading_info": True})
        _check_complete(model, info, place)
        _check_used(model, info, place)
        return (model, info) if options.get("output_loading_info") else model

    return from_pretrained


def _missing_plan(place: Any, config: Any) -> Plan | None:
    """Return the plan of a pressed folder if the config in use lacks it."""
    if not isinstance(place, str | os.PathLike) or not Path(place).is_dir():
        return None
    folder = Path(place)
    if isinstance(config, PretrainedConfig):
        marked = getattr(config, QUANTIZATION, None) is not None
    else:
        marked = is_marked(folder)
    return None if marked else read_plan(folder)


def _check_complete(model: nn.Module, info: dict[str, Any], place: Any) -> None:
    """Raise an error if values of a pressed layer are missing."""
    layers = {layer.name for layer in plan_from_model(model).layers}
    prefixes = tuple(f"{layer}." for layer in layers)
    missing = sorted(
        name
        for name in info["missing_keys"]
        if name.startswith(prefixes) or factorized_weights([name]) & layers
    )
    if missing:
        raise ModelMismatchError(
            f"{place} lacks {format_names(missing)}, which its pressed layers need"
        )


def _check_used(model: nn.Module, info: dict[str, Any], place: Any) -> None:
    """Raise an error if the files have factors of layers that are dense in the model."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    weights = {name.removeprefix(prefix): name for name in model.state_dict()}
    names = (name.removeprefix(prefix) for name in factorized_weights(info["unexpected_keys"]))
    dense = sorted(weights[name].removesuffix(".weight") for name in names if name in weights)
    if dense:
        raise ModelMismatchError(
            f"{place} has factors of {format_names(dense)}, which are not in the plan: load it "
            f"with the {PLAN} or {CONFIG} that was saved with these factors"
        )


def _save_pressed(save: Callable[..., Any]) -> Callable[..., Any]:
    """Return a ``save_pretrained`` that writes the plan of a pressed model to its config.

    The tensors of a pressed model are named after its modules, as in the plan. Transformers 5 would
    give some models the names of their original checkpoint.
    """
    renames = RENAMED in signature(save).parameters

    @wraps(save)
    def save_pretrained(model: nn.Module, *args: Any, **options: Any) -> Any:
        if mark_model(model) and renames:
            options.setdefault(RENAMED, False)
        return save(model, *args, **options)

    return save_pretrained


def mark_model(model: nn.Module) -> bool:
    """Update the config of a model with its plan, and return whether it is pressed."""
    config: Any = model.config
    plan = plan_from_model(model)
    if plan.layers:
        config.quantization_config = TensorPressConfig(plan.to_dict())
        vars(config)[WEIGHTS] = REFUSAL
    elif isinstance(getattr(config, QUANTIZATION, None), TensorPressConfig):
        del config.quantization_config
        vars(config).pop(WEIGHTS, None)
        vars(model).pop("hf_quantizer", None)
    return bool(plan.layers)
