"""Fitting of the layers in one stage of a streamed model to calibration data."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import outside_contexts
from tensorpress.calibrate.input_moments import find_leaders
from tensorpress.calibrate.paired_moments import PairedMoments
from tensorpress.calibrate.patches import can_unfold
from tensorpress.checkpoints.state_files import StateFiles
from tensorpress.checkpoints.streamed_model import Stage, StreamedModel
from tensorpress.errors import InvalidArgumentError
from tensorpress.reconstruct.data_checks import FEW_ROWS, ROWS_A_COLUMN
from tensorpress.reconstruct.paired_fit import fit_to_pairs
from tensorpress.reconstruct.unfitted import reason_unfitted
from tensorpress.schemes.initialization import StartValues, build_pressed, decompose_weight
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.module_tree import locate_weight

logger = logging.getLogger("tensorpress.press")


class StagePress:
    """Presses the layers of a stage; layers with the same inputs form a group.

    Parameters
    ----------
    model : StreamedModel
        The model.
    stage : Stage
        The stage, whose weights are dense.
    dense, pressed : StateFiles
        The hidden states of the dense and the pressed model before the blocks.

    """

    def __init__(
        self, model: StreamedModel, stage: Stage, dense: StateFiles, pressed: StateFiles
    ) -> None:
        self._model, self._stage = model, stage
        self._dense, self._pressed = dense, pressed
        self._modules: dict[str, nn.Module] = {}  # which replace dense ones

    def press(self, layers: Sequence[LayerPlan], report: Callable[[str], None]) -> None:
        """Press layers, in the order in which they are called.

        Parameters
        ----------
        layers : sequence of LayerPlan
            The layers of the plan in this stage.
        report : callable
            Called with the name of each layer before it is pressed.
        """
        left = {layer.name: layer for layer in layers}
        for layer in layers:
            self._stage.load(locate_weight(self._stage.module, self._local(layer.name))[0])
        for group in self._groups(left):
            moments = self._moments(group[0])
            for name in group:
                report(name)
                self._put(left[name], self._fit(left.pop(name), moments))
        for name, layer in left.items():
            report(name)
            values = decompose_weight(layer, self._weight(layer))
            logger.info("layer %s: decomposed by its weight alone", name)
            self._put(layer, values)

    def run_dense(self, place: int) -> Any:
        """Return the outputs of the dense stage for a batch of the dense model's states."""
        return self._stage.run(place, self._state(self._dense, place))

    def run_pressed(self, place: int) -> Any:
        """Return the outputs of the partly pressed stage for the pressed states of a batch."""
        with self._swapped():
            return self._stage.run(place, self._state(self._pressed, place))

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the pressed modules by full name."""
        return {
            f"{self._stage.prefix}{name}.{key}": tensor
            for name, module in self._modules.items()
            for key, tensor in module.state_dict().items()
        }

    def _state(self, states: StateFiles, place: int) -> Tensor | None:
        return None if self._stage.number == 0 else states.read(self._stage.number - 1, place)

    def _groups(self, layers: Mapping[str, LayerPlan]) -> list[list[str]]:
        """Return the layers that can be fitted, grouped by their inputs."""
        modules = {name: self._module(name) for name in layers}
        fitted = {
            name: module
            for name, module in modules.items()
            if can_unfold(module)
            and reason_unfitted(self._stage.module, replace(layers[name], name=self._local(name)))
            is None
        }
        if not fitted or self._stage.number == 0:
            return []
        with torch.no_grad():
            leaders = find_leaders(fitted, lambda: self.run_dense(0))
        groups: dict[str, list[str]] = {}
        for name, leader in leaders.items():
            groups.setdefault(leader, []).append(name)
        return list(groups.values())

    def _moments(self, name: str) -> PairedMoments:
        """Return the moments of a layer's inputs over all batches."""
        layer = self._module(name)
        moments: PairedMoments | None = None
        for place, batch in enumerate(self._model.batches):
            inputs = []
            for run in (self.run_dense, self.run_pressed):
                x = batch.unpadded(layer, first_input(layer, run, place))
                inputs.append(x.reshape(-1, x.shape[-1]))
            if moments is None:
                moments = PairedMoments.zeros(inputs[0].shape[-1])
            moments.add(*inputs)
        assert moments is not None
        columns = len(moments.second)
        if moments.rows < ROWS_A_COLUMN * columns:
            logger.warning(
                FEW_ROWS,
                *(name, f"{columns:,}", f"{moments.rows:,}", f"{ROWS_A_COLUMN * columns:,}"),
            )
        return moments

    def _fit(self, layer: LayerPlan, moments: PairedMoments) -> StartValues:
        bias = self._module(layer.name)._parameters.get("bias")
        return fit_to_pairs(layer, self._weight(layer), bias, moments)

    def _put(self, layer: LayerPlan, values: StartValues) -> None:
        module, key = locate_weight(self._stage.module, self._local(layer.name))
        name = self._local(layer.name) if key == "weight" else layer.name.rpartition(".")[0]
        name = name.removeprefix(self._stage.prefix)
        if layer.method.form == "weight":  # builds factors in a copy of the module
            module = self._modules[name] if name in self._modules else deepcopy(module)
        self._modules[name] = build_pressed(layer, module, values, key)

    @contextmanager
    def _swapped(self) -> Iterator[None]:
        """Replace dense by pressed modules while the stage runs."""
        places: list[tuple[dict[str, nn.Module | None], str, nn.Module | None]] = []
        try:
            for name, module in self._modules.items():
                parent, _, key = name.rpartition(".")
                children = self._stage.module.get_submodule(parent)._modules
                places.append((children, key, children[key]))
                children[key] = module
            yield
        finally:
            for children, key, original in places:
                children[key] = original

    def _module(self, name: str) -> nn.Module:
        return self._stage.module.get_submodule(self._local(name))

    def _weight(self, layer: LayerPlan) -> Tensor:
        module, key = locate_weight(self._stage.module, self._local(layer.name))
        return module.get_parameter(key).detach()

    def _local(self, name: str) -> str:
        return name.removeprefix(self._stage.prefix)


class _Reached(Exception):  # noqa: N818
    """Ends a forward pass at the layer whose input is needed."""


def first_input(layer: nn.Module, run: Callable[[int], Any], place: int) -> Tensor:
    """Return the input of a layer in a forward pass, which stops there.

    Raises
    ------
    InvalidArgumentError
        If the pass does not call the layer.
    """
    inputs: list[Tensor] = []

    @outside_contexts()
    def hook(_: nn.Module, args: Any, kwargs: Any) -> None:
        inputs.append((*args, *kwargs.values())[0].detach())
        raise _Reached

    handle = layer.register_forward_pre_hook(hook, with_kwargs=True)
    try:
        with torch.no_grad(), suppress(_Reached):
            run(place)
    finally:
        handle.remove()
    if not inputs:
        raise InvalidArgumentError(
            f"calibration batch {place} does not run a layer that the first batch runs"
        )
    return inputs[0]
