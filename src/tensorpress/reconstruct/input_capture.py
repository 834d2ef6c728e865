"""Forward passes of several batches, side by side, that wait for each other at every layer."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch, model_outputs
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode


def lockstep(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> Iterator[tuple[str, list[Tensor]]]:
    """Run the forward passes of batches through a model, and stop all of them at each layer.

    While they wait, layers may be replaced: the passes go on with what stands in the model then.
    So every layer can be fitted to what those before it leave, for the price of one pass over the
    batches; held in memory are the activations of all of them. Passes take turns on one thread.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode.
    names : sequence of str
        Layers that every batch calls once, in the same order.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.

    Yields
    ------
    tuple of str and list of Tensor
        Each layer's name and its inputs, a tensor a batch, in the order of the calls.

    Raises
    ------
    InvalidArgumentError
        If batches call the layers in different orders, or one of them calls some no more.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> for name, inputs in lockstep(net, ["0", "1"], collect_batches([torch.ones(1, 2)], net)):
    ...     _ = net[0].weight.data.fill_(3.0)  # the second layer will see it
    ...     print(name, inputs)
    0 [tensor([[1., 1.]])]
    1 [tensor([[6., 6.]])]
    """
    passes = [_Pass(model, batch) for batch in batches]
    with ExitStack() as stack:
        stack.enter_context(evaluation_mode(model))
        for name in names:
            stack.enter_context(_stopping(model, name, model.get_submodule(name)))
        stack.callback(_end, passes)
        for _ in names:
            reached = {one.resume() for one in passes}
            if len(reached) > 1:
                raise InvalidArgumentError(
                    "batches call layers in different orders "
                    f"({' and '.join(sorted(map(repr, reached)))} at the same place), so they "
                    "cannot be fitted one after the other"
                )
            yield reached.pop(), [one.given for one in passes]


class _Run(greenlet):
    """What a pass runs in."""


class _Pass:
    """One forward pass: it runs until a layer stops it."""

    given: Tensor

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._run = _Run(lambda: model_outputs(model, batch))
        self._state = replace(_State.now(), grad=False)

    def resume(self) -> str:
        """Go on to the next layer, and return its name."""
        found = self._within(self._run.switch)
        if self._run.dead:
            raise InvalidArgumentError(
                "a batch calls fewer layers once others are pressed: they cannot be fitted one "
                "after the other"
            )
        name, self.given = found
        return str(name)

    def end(self) -> None:
        """Leave the pass where it is."""
        if self._run:
            self._within(lambda: self._run.throw(GreenletExit))

    def _within(self, call: Callable[[], Any]) -> Any:
        """Let the pass run in its own state of torch."""
        outside = _State.now()
        self._state.apply()
        try:
            return call()
        finally:
            self._state = _State.now()
            outside.apply()


_DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class _State:
    """What torch keeps for a thread and contexts change: passes that take turns need each its own.

    ``autocast`` has whether it is on, and the dtype, of each device.
    """

    grad: bool
    autocast: tuple[tuple[bool, torch.dtype], ...]

    @staticmethod
    def now() -> "_State":
        """Return the present state."""
        autocast = (
            (torch.is_autocast_enabled(device), torch.get_autocast_dtype(device))
            for device in _DEVICES
        )
        return _State(torch.is_grad_enabled(), tuple(autocast))

    def apply(self) -> None:
        """Make this the present state."""
        torch.set_grad_enabled(self.grad)
        for device, (enabled, dtype) in zip(_DEVICES, self.autocast, strict=True):
            torch.set_autocast_enabled(device, enabled)
            torch.set_autocast_dtype(device, dtype)


@contextmanager
def _stopping(model: nn.Module, name: str, layer: nn.Module) -> Iterator[None]:
    """Have a layer stop the pass that calls it, once, and then be what stands in its place."""
    own, dense = layer.__dict__.get("forward"), layer.forward

    def forward(*given: Any, **named: Any) -> Any:
        run = getcurrent()
        if not isinstance(run, _Run) or run.parent is None:  # a call that is none of the passes
            return dense(*given, **named)
        run.parent.switch((name, (*given, *named.values())[0]))
        now = model.get_submodule(name)
        return dense(*given, **named) if now is layer else now(*given, **named)

    layer.forward = forward
    try:
        yield
    finally:
        if own is None:
            layer.__dict__.pop("forward", None)
        else:
            layer.forward = own


def _end(passes: Sequence[_Pass]) -> None:
    for one in passes:
        one.end()
