"""A dense model with its costs and layers, and the weights that other modules read."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import count_macs, count_params
from tensorpress.measure.layer_calls import record_inputs
from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.planning.budget import Budget
from tensorpress.planning.layers import (
    Layer,
    Weights,
    find_obstacles,
    find_pressable,
    find_vectors,
    match_names,
)
from tensorpress.planning.plan import Plan, PlannedLatency
from tensorpress.schemes.folding import fold
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.lazy_tensor import defer
from tensorpress.utils.module_tree import locate_weight


@contextmanager
def record_readers(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Record the layers whose weight other modules use while a ``with`` block runs.

    Such a layer cannot be replaced, because its forward pass does not run. Reading only the dtype
    or shape of a weight is not recorded.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        Layers with a weight, by name.

    Yields
    ------
    set of str
        The names, filled while the block runs.

    Examples
    --------
    >>> import torch
    >>> tied = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
    >>> with record_readers(dict(tied.named_children())) as read:
    ...     _ = nn.functional.linear(tied[0](torch.ones(1, 3)), tied[1].weight)
    >>> read
    {'1'}
    """
    read: set[str] = set()
    classes = {name: type(layer) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__class__ = _make_watched_class(classes[name], partial(read.add, name))
        yield read
    finally:
        for name, layer in layers.items():
            layer.__class__ = classes[name]


def _make_watched_class(base: type[nn.Module], record: Callable[[], None]) -> type[nn.Module]:
    """Return a layer class that records uses of its weight outside its forward pass."""

    class Watched(base):  # type: ignore[misc, valid-type]
        running = False

        def __call__(self, *arguments: Any, **options: Any) -> Any:
            self.__dict__["running"] = True
            try:
                return super().__call__(*arguments, **options)
            finally:
                del self.__dict__["running"]

        def __getattr__(self, name: str) -> Any:
            value = super().__getattr__(name)
            if name != "weight" or self.running or not isinstance(value, Tensor):
                return value

            def use() -> Tensor:
                record()
                return value

            return defer(use, like=value)

    Watched.__name__ = base.__name__
    return Watched


@dataclass(frozen=True)
class DenseModel:
    """A model with its costs and layers.

    Attributes
    ----------
    module : nn.Module
        The model.
    inputs : ModelInputs or None
        Arguments of a forward pass.
    params, bytes : int
        Number of parameters, and bytes of parameters and buffers.
    macs : int or None
        Multiply-accumulates for one example; None without inputs.
    layers : mapping of str to Layer
        The layers with a weight that can be pressed, in the order of the model.
    unpressed : mapping of str to str
        The layers with a weight that cannot be pressed, with the reason.
    vectors : mapping of str to str
        All other parameters in floating point, with the reason.
    """

    module: nn.Module
    inputs: ModelInputs | None
    params: int
    bytes: int
    macs: int | None
    layers: Mapping[str, Layer]
    unpressed: Mapping[str, str]
    vectors: Mapping[str, str]

    @staticmethod
    def from_module(
        model: nn.Module,
        example_inputs: ExampleInputs | None,
        weights: Weights | None,
    ) -> "DenseModel":
        """Return the description of a model, which runs once if there are inputs.

        Parameters
        ----------
        model : nn.Module
            The model; its weights may be on the meta device.
        example_inputs : Tensor, sequence or mapping, optional
            Arguments of one forward pass; see `ModelInputs.parse`.
        weights : callable, optional
            Returns the weight of a layer by name, for a model without values.

        Raises
        ------
        InvalidArgumentError
            If the model fails on the inputs, or a layer has no shape yet.
        """
        inputs = None if example_inputs is None else ModelInputs.parse(example_inputs)
        model = fold(model)
        shapes, unpressed = find_pressable(model)
        shapes_in: Mapping[str, tuple[torch.Size, ...]] = {}
        read: set[str] = set()
        places = {name: locate_weight(model, name) for name in shapes}
        if inputs is not None:
            modules = {name: layer for name, (layer, key) in places.items() if key == "weight"}
            with record_readers(modules) as read:
                shapes_in = record_inputs(model, inputs, list(modules))
        obstacles = find_obstacles(model, read)
        layers = {
            name: Layer(
                name,
                places[name][0],
                shape,
                {form: reasons[name] for form, reasons in obstacles.items() if name in reasons},
                shapes_in.get(name, ()),
                weights,
                inputs.batch if inputs is not None else 1,
                places[name][1],
            )
            for name, shape in shapes.items()
        }
        tensors = [*model.parameters(), *model.buffers()]
        return DenseModel(
            model,
            inputs,
            count_params(model),
            sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            count_macs(model, inputs) if inputs is not None else None,
            layers,
            unpressed,
            find_vectors(model),
        )

    def select_layers(
        self, targets: Sequence[str], skip: Sequence[str]
    ) -> tuple[dict[str, Layer], dict[str, str]]:
        """Return the layers to press, and the others with the reason.

        ``targets`` and ``skip`` are names and patterns as `tensorpress.plan` takes them.

        Raises
        ------
        InvalidArgumentError
            If a pattern matches nothing.
        """
        for key, value in (("targets", targets), ("skip", skip)):
            if isinstance(value, str):
                raise InvalidArgumentError(
                    f"{key} must be a list of names or patterns, not the text {value!r}"
                )
        unpressed = dict(self.unpressed)
        if tuple(targets) != ("*",):
            named = {x for pattern in targets for x in match_names(pattern, self.layers, unpressed)}
            unpressed |= {
                name: "not among the targets" for name in self.layers if name not in named
            }
        for pattern in skip:
            names = match_names(pattern, {**self.layers, **unpressed}, unpressed)
            unpressed = dict.fromkeys(names, f"skipped by {pattern!r}") | unpressed
        return {
            name: layer for name, layer in self.layers.items() if name not in unpressed
        }, unpressed

    def max_params(self, limit: Budget) -> int:
        """Return the number of parameters that a budget of parameters or bytes allows.

        Raises
        ------
        InvalidArgumentError
            If the budget is of MACs or latency.
        """
        if limit.kind == "params":
            return int(limit.resolve(self.params))
        if limit.kind == "bytes":
            itemsize = max(layer.itemsize for layer in self.layers.values())
            return self.params - int(-(-(self.bytes - limit.resolve(self.bytes)) // itemsize))
        raise InvalidArgumentError(
            f"rebuilding weights saves no {limit.kind}: give a budget of params or bytes"
        )

    def plan(
        self,
        scheme: str,
        layers: Sequence[LayerPlan],
        unpressed: Mapping[str, str],
        latency: PlannedLatency | None = None,
    ) -> Plan:
        """Return the plan that presses these layers.

        Parameters
        ----------
        scheme : str
            The name of the scheme, or several names.
        layers : sequence of LayerPlan
            The layers that are pressed.
        unpressed : mapping of str to str
            The other layers, with the reason.
        latency : PlannedLatency, optional
            The times, for a latency budget.
        """
        return Plan(
            scheme,
            tuple(layers),
            {**unpressed, **self.vectors},
            self.params - sum(layer.dense_params for layer in layers),
            self.bytes - sum(layer.itemsize * layer.dense_params for layer in layers),
            None if self.macs is None else self.macs - sum(layer.dense_macs for layer in layers),
            latency,
        )
