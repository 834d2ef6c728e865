"""A dense model as planning sees it: its costs, its layers, and who else reads their weights."""

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
from tensorpress.planning.budget import Budget
from tensorpress.planning.layers import Layer, Weights, find_obstacles, find_pressable, match_names
from tensorpress.planning.plan import Plan
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.lazy_tensor import defer


@contextmanager
def record_readers(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """Note which layers have their weight used by others than themselves while a block runs.

    Such a layer cannot be replaced by others: its own forward pass is not what runs. Asking for
    the dtype of the weight is no use of it.

    Parameters
    ----------
    layers : mapping of str to nn.Module
        By their names, each with a weight.

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
    kinds = {name: type(layer) for name, layer in layers.items()}
    try:
        for name, layer in layers.items():
            layer.__class__ = _watched(kinds[name], partial(read.add, name))
        yield read
    finally:
        for name, layer in layers.items():
            layer.__class__ = kinds[name]


def _watched(kind: type[nn.Module], note: Callable[[], None]) -> type[nn.Module]:
    """Return a class of layer that tells when its weight is used outside its forward pass."""

    class Watched(kind):  # type: ignore[misc, valid-type]
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

            def used() -> Tensor:
                note()
                return value

            return defer(used, like=value)

    Watched.__name__ = kind.__name__
    return Watched


@dataclass(frozen=True)
class DenseModel:
    """A model, what it costs, and its layers.

    Attributes
    ----------
    module : nn.Module
        The model.
    inputs : tuple of Tensor
        Arguments of a forward pass; none where none were given.
    params, bytes : int
        Of all parameters; bytes of the buffers as well.
    macs : int or None
        For one example; None without inputs.
    layers : mapping of str to Layer
        Those with a weight that can be pressed, in the order of the model.
    unpressed : mapping of str to str
        Those with one that cannot be, with the reason.
    """

    module: nn.Module
    inputs: tuple[Tensor, ...]
    params: int
    bytes: int
    macs: int | None
    layers: Mapping[str, Layer]
    unpressed: Mapping[str, str]

    @staticmethod
    def from_module(
        model: nn.Module,
        example_inputs: Tensor | Sequence[Tensor] | None,
        weights: Weights | None,
    ) -> "DenseModel":
        """Look at a model, running it once where there are inputs.

        Raises
        ------
        InvalidArgumentError
            For inputs that the model does not take, or a layer that has no shape yet.
        """
        given = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
        inputs = tuple(given or ())
        shapes, unpressed = find_pressable(model)
        shapes_in: Mapping[str, tuple[torch.Size, ...]] = {}
        read: set[str] = set()
        if inputs:
            with record_readers({name: model.get_submodule(name) for name in shapes}) as read:
                shapes_in = record_inputs(model, inputs, list(shapes))
        blocked = find_obstacles(model, read)
        layers = {
            name: Layer(
                name,
                model.get_submodule(name),
                shape,
                {form: reasons[name] for form, reasons in blocked.items() if name in reasons},
                shapes_in.get(name, ()),
                weights,
            )
            for name, shape in shapes.items()
        }
        if inputs:
            batch = inputs[0].shape[0]
            layers = {name: layer.with_calls(batch) for name, layer in layers.items()}
        held = [*model.parameters(), *model.buffers()]
        return DenseModel(
            model,
            inputs,
            count_params(model),
            sum(tensor.numel() * tensor.element_size() for tensor in held),
            count_macs(model, inputs) if inputs else None,
            layers,
            unpressed,
        )

    def select_layers(
        self, targets: Sequence[str], skip: Sequence[str]
    ) -> tuple[dict[str, Layer], dict[str, str]]:
        """Return the layers to press, and the others with the reason.

        Raises
        ------
        InvalidArgumentError
            For a pattern that matches nothing.
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
            found = match_names(pattern, {**self.layers, **unpressed}, unpressed)
            unpressed = dict.fromkeys(found, f"skipped by {pattern!r}") | unpressed
        return {
            name: layer for name, layer in self.layers.items() if name not in unpressed
        }, unpressed

    def max_params(self, limit: Budget) -> int:
        """Return how many parameters a budget allows, where those saved are of one kind."""
        if limit.kind == "params":
            return int(limit.resolve(self.params))
        if limit.kind == "bytes":
            itemsize = max(layer.itemsize for layer in self.layers.values())
            return self.params - int(-(-(self.bytes - limit.resolve(self.bytes)) // itemsize))
        raise InvalidArgumentError(
            f"rebuilt weights save no {limit.kind}: give a budget of params or bytes"
        )

    def plan(self, scheme: str, layers: Sequence[LayerPlan], unpressed: Mapping[str, str]) -> Plan:
        """Return the plan that presses some of the layers."""
        return Plan(
            scheme,
            tuple(layers),
            dict(unpressed),
            self.params - sum(layer.dense_params for layer in layers),
            self.bytes - sum(layer.itemsize * layer.dense_params for layer in layers),
            None if self.macs is None else self.macs - sum(layer.dense_macs for layer in layers),
        )
