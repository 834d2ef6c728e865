"""The quantization method "tensorpress" of Transformers: factors instead of dense weights."""

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import transformers
from torch import nn
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tensorpress.errors import ModelMismatchError, TensorPressError
from tensorpress.hugging_face.pressed_config import CONFIG, METHOD, PLAN, read_plan
from tensorpress.planning.plan import Plan
from tensorpress.press.press import build_skeleton
from tensorpress.utils.module_tree import parameter_name

OLDEST = (4, 57)
"""The oldest version of transformers whose ``from_pretrained`` is tested."""


class Method(str, Enum):
    """The name of the method, as an Enum like those of transformers."""

    TENSORPRESS = METHOD


class TensorPressConfig(QuantizationConfigMixin):  # type: ignore[misc]
    """The entry ``quantization_config`` of a pressed model.

    Parameters
    ----------
    plan : dict, optional
        The plan as plain data, from `tensorpress.Plan.to_dict`; by default ``plan.json`` is read.
    """

    def __init__(self, plan: dict[str, Any] | None = None, **_: Any) -> None:
        self.quant_method = Method.TENSORPRESS
        self.plan = plan

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as plain data."""
        return {"quant_method": METHOD, "plan": self.plan}


class TensorPressQuantizer(HfQuantizer):  # type: ignore[misc]
    """Presses an empty model by a plan before transformers loads its weights."""

    requires_calibration = False

    def validate_environment(self, *_: Any, **__: Any) -> None:
        """Refuse versions of transformers that would leave values uninitialized.

        Raises
        ------
        TensorPressError
            If transformers is older than `OLDEST`.
        """
        version = tuple(map(int, transformers.__version__.split(".")[:2]))
        if version < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise TensorPressError(
                f"from_pretrained of a pressed model needs transformers {oldest} or newer, got "
                f"{transformers.__version__}: use tensorpress.load_checkpoint"
            )

    def _process_model_before_weight_loading(
        self, model: nn.Module, checkpoint_files: Sequence[str] | None = None, **_: Any
    ) -> None:
        if self.quantization_config.plan is None:
            self.quantization_config.plan = _plan_beside(checkpoint_files).to_dict()
        plan = adapt_plan(Plan.from_dict(self.quantization_config.plan), model)
        _check_untied(model, plan)
        build_skeleton(model, plan)

    def _process_model_after_weight_loading(self, model: nn.Module, **_: Any) -> None:
        # Factors are ordinary parameters: everything that transformers forbids for integers is
        # allowed.
        model.is_quantized = False  # type: ignore[assignment]
        vars(model).pop("quantization_method", None)
        vars(model.config).pop("_pre_quantization_dtype", None)

    def is_serializable(self, *_: Any, **__: Any) -> bool:
        """Whether ``save_pretrained`` works."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether adapters may be trained."""
        return True

    @property
    def is_qat_trainable(self) -> bool:
        """Whether the model itself may be trained."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Whether `torch.compile` works."""
        return True


def _plan_beside(files: Sequence[str] | None) -> Plan:
    """Return the plan in the folder of weight files."""
    plan = read_plan(Path(files[0]).parent) if files else None
    if plan is None:
        raise ModelMismatchError(
            f"the {CONFIG} has the method {METHOD!r} without its plan, and there is no {PLAN}: "
            "restore one of these files as it was saved with the model"
        )
    return plan


def _check_untied(model: nn.Module, plan: Plan) -> None:
    """Raise an error if the config ties the weight of a pressed layer."""
    # Available since transformers 5, which ties weights after loading.
    ties: dict[str, str] = getattr(model, "all_tied_weights_keys", {})
    for layer in plan.layers:
        if parameter_name(model, layer.name) in {*ties, *ties.values()}:
            raise ModelMismatchError(
                f"layer {layer.name!r} is pressed, but the {CONFIG} ties its weight: set "
                "tie_word_embeddings to false, as when the model was saved"
            )


def adapt_plan(plan: Plan, model: nn.Module) -> Plan:
    """Return a plan with the names of its layers in a model.

    A checkpoint of a whole model can be loaded into its base and vice versa: then one of them lacks
    the prefix of the base, and the base has no head. Layers that the model does not have are left
    out; factors without a layer cause an error after loading.

    Parameters
    ----------
    plan : Plan
        The plan of the saved model.
    model : nn.Module
        The model to load, a `PreTrainedModel`.
    """
    # A layer is a module, or a parameter with a name other than `weight`, such as stacked experts.
    layers_of_model = {name for name, _ in (*model.named_modules(), *model.named_parameters())}
    prefix = f"{getattr(model, 'base_model_prefix', '')}."

    def name_in_model(name: str) -> str | None:
        spellings = (name, name.removeprefix(prefix), prefix + name)
        return next((spelling for spelling in spellings if spelling in layers_of_model), None)

    layers = ((layer, name_in_model(layer.name)) for layer in plan.layers)
    return replace(
        plan, layers=tuple(replace(layer, name=name) for layer, name in layers if name is not None)
    )
