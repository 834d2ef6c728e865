"""The tensors of a pressed folder, and those of its dense model, read one at a time."""

import os
from copy import deepcopy

import torch
from torch import Tensor, nn

from tensorpress.checkpoints.load import model_from_config, stored_names
from tensorpress.checkpoints.meta_model import check_fits, tied_names, to_meta
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.errors import DataNotFoundError
from tensorpress.hugging_face.pressed_config import PLAN, read_plan
from tensorpress.press.press import build_skeleton
from tensorpress.press.unpress import rebuild_dense
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.module_tree import locate_weight, parameter_name


class PressedFiles:
    """A pressed folder whose dense tensors are rebuilt from factors when they are read.

    Parameters
    ----------
    folder : path
        The folder.
    model : nn.Module, optional
        A dense model of the same architecture; not needed for a Transformers model.

    Attributes
    ----------
    files : TensorFiles
        The stored tensors.
    plan : Plan
        The plan of the pressed model.
    dense : nn.Module
        The dense model on the meta device.

    Raises
    ------
    DataNotFoundError
        If the folder or its plan is missing.
    ModelMismatchError
        If plan, tensors and model do not fit together.
    """

    def __init__(self, folder: str | os.PathLike[str], model: nn.Module | None = None) -> None:
        self.files = TensorFiles(folder)
        plan = read_plan(self.files.folder)
        if plan is None:
            raise DataNotFoundError(
                f"{folder} has no {PLAN}: expected the folder of a pressed model"
            )
        self.plan = plan
        self.dense = model_from_config(self.files.folder) if model is None else to_meta(model)
        self.dense.to("meta")
        self._pressed = build_skeleton(deepcopy(self.dense), plan)
        names = stored_names(self._pressed, self.files)
        check_fits(self._pressed, names, self.files)
        ties = tied_names(self._pressed)
        self._stored = {name: names[first] for first in names for name in ties[first]}
        self._layers: dict[str, LayerPlan] = {}
        for layer in plan.layers:
            weight = parameter_name(self.dense, layer.name)
            bias = f"{weight.removesuffix('weight')}bias"
            whole = (weight, bias) if layer.method.form == "layer" else (weight,)
            self._layers |= dict.fromkeys(whole, layer)
        self._last: tuple[str, nn.Module] | None = None

    def dense_tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the dense model by first name, on the meta device."""
        state = self.dense.state_dict(keep_vars=True)
        return {
            name: torch.empty(state[name].shape, dtype=self._dtype(name), device="meta")
            for name in tied_names(self.dense)
        }

    def read_dense(self, name: str) -> Tensor:
        """Return the values of a tensor of the dense model."""
        layer = self._layers.get(name)
        if layer is None:
            return self.files.read(self._stored[name])
        if self._last is None or self._last[0] != layer.name:
            self._last = layer.name, self._read_layer(layer)
        return self._last[1].get_parameter(name.rpartition(".")[2]).detach()

    def _dtype(self, name: str) -> torch.dtype:
        layer = self._layers.get(name)
        if layer is None:
            return self.files.tensors[self._stored[name]].dtype
        prefix, _ = self._place(layer)
        return next(
            self.files.tensors[self._stored[key]].dtype
            for key, value in self._pressed.state_dict().items()
            if key.startswith(prefix) and value.is_floating_point()
        )

    def _place(self, layer: LayerPlan) -> tuple[str, str]:
        """Return the prefix of a module's tensors, and the key of the layer's weight in it."""
        weight = parameter_name(self.dense, layer.name)
        module, _, key = weight.rpartition(".")
        return f"{module}." if module else "", key

    def _read_layer(self, layer: LayerPlan) -> nn.Module:
        """Return the dense layer of the stored factors."""
        prefix, key = self._place(layer)
        module = deepcopy(locate_weight(self._pressed, layer.name)[0])
        values = {
            name: self.files.read(self._stored[prefix + name]) for name in module.state_dict()
        }
        module.load_state_dict(values, assign=True)
        return rebuild_dense(module, key)
