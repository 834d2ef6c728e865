"""Finds the batch norm and the activation that take a layer's output."""

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.measure.cost import evaluation_mode

_RELUS = (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_)


@dataclass(frozen=True)
class Following:
    """The single consumer of a layer's output.

    Attributes
    ----------
    norm : nn.Module or None
        A batch norm with running statistics directly after the layer, used by no other layer.
    activation : str or None
        Name of the function that takes the output of the layer or norm; None if there are several.
    relu : bool
        Whether that function is a ReLU.
    """

    norm: nn.Module | None = None
    activation: str | None = None
    relu: bool = False

    def __str__(self) -> str:
        return self.activation or "no single function"


def find_next_ops(model: nn.Module, layers: Sequence[str], batch: Batch) -> dict[str, Following]:
    """Return the operation after each layer in one forward pass.

    Calls of torch's functions are recorded, so models that cannot be traced work as well.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode.
    layers : sequence of str
        Names of the layers.
    batch : Batch
        Inputs to run it on.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten())
    >>> [batch] = collect_batches([torch.ones(1, 1, 5, 5)], net)
    >>> following = find_next_ops(net, ["0"], batch)["0"]
    >>> following.norm is net[1], following.relu
    (True, True)
    """
    watch = _Watch()
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        for name in layers:
            hook = model.get_submodule(name).register_forward_hook(watch.output_of(name))
            stack.callback(hook.remove)
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                hook = module.register_forward_pre_hook(watch.entering)
                stack.callback(hook.remove)
        with watch:
            run_to_end(model, batch)
    return {name: watch.following(name) for name in layers}


@dataclass(frozen=True)
class _Use:
    """A call that took a value: its function and name, the value it returned, the norm it is in."""

    name: str
    function: Callable[..., Any]
    output: int
    norm: nn.Module | None


class _Watch(TorchFunctionMode):
    """Records every use of values that derive from a layer's output.

    A value is a number; a tensor that is changed in place becomes another value.
    """

    def __init__(self) -> None:
        super().__init__()
        self._outputs: dict[str, list[int]] = {}
        self._tensors: list[Tensor] = []  # keeps ids from being used again
        self._value_of: dict[int, int] = {}  # by the tensor's id
        self._uses: list[list[_Use]] = []  # of every value
        self._norm: nn.Module | None = None
        self._calls = Counter[nn.Module]()  # of norms

    def output_of(self, name: str) -> Callable[..., None]:
        """Return a hook that records a layer's output."""

        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            self._outputs.setdefault(name, []).append(self._value(output))

        return hook

    def entering(self, norm: nn.Module, _: Any) -> None:
        """Remember which module calls the function of batch norms."""
        self._norm = norm
        self._calls[norm] += 1

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        arguments: tuple[Any, ...] = (),
        keywords: dict[str, Any] | None = None,
    ) -> Any:
        """Make a call, and record it as a use of its arguments."""
        keywords = keywords or {}
        leaves = tree_leaves((arguments, keywords))
        taken = {self._value_of[id(x)] for x in leaves if self._knows(x)}
        output = function(*arguments, **keywords)
        name = (resolve_name(function) or "").rpartition(".")[2]
        norm = None
        if function is functional.batch_norm:
            norm, self._norm = self._norm, None
        if taken and name != "__get__" and isinstance(output, Tensor):
            use = _Use(name, function, self._value(output), norm)
            for value in taken:
                self._uses[value].append(use)
        return output

    def following(self, name: str) -> Following:
        """Return the operation after a layer, if it is the same after each of its calls."""
        outputs = self._outputs.get(name, [])
        after = {self._following(value, len(outputs)) for value in outputs}
        return after.pop() if len(after) == 1 else Following()

    def _following(self, value: int, calls: int) -> Following:
        """Return the operation after one of several outputs of a layer."""
        use, norm = self._only_use(value), None
        if use is not None and use.norm is not None and self._calls[use.norm] == calls:
            norm = use.norm
            use = self._only_use(use.output)
        if use is None:
            return Following(norm)
        return Following(norm, use.name, use.function in _RELUS)

    def _only_use(self, value: int) -> _Use | None:
        uses = self._uses[value]
        return uses[0] if len(uses) == 1 else None

    def _knows(self, argument: object) -> bool:
        return isinstance(argument, Tensor) and id(argument) in self._value_of

    def _value(self, tensor: Tensor) -> int:
        self._tensors.append(tensor)
        self._value_of[id(tensor)] = len(self._uses)
        self._uses.append([])
        return self._value_of[id(tensor)]
