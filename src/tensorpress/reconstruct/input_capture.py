"""Captures the inputs of a model's layers in sequence, while layers are replaced."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.calibrate.batches import Batch
from tensorpress.calibrate.full_pass import run_to_end
from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluation_mode
from tensorpress.reconstruct.op_tape import DivergedError, OpTape


def capture_inputs(
    model: nn.Module, names: Sequence[str], batches: Sequence[Batch]
) -> Iterator[tuple[str, list[Tensor]]]:
    """Yield the inputs of layers in the order in which a model calls them.

    After a layer is yielded it may be replaced or changed, and later layers see its new outputs.
    So every layer can be fitted to the inputs that the layers before it produce.

    A hook on the next layer records its input and ends the pass with an exception, so that every
    context that the model's forward has entered is left again. The next pass runs the model's
    Python from the start, except modules that are done, and plays operations back up to where the
    last pass stopped (`OpTape`), so that all layers together cost one pass. A pass that a tape
    cannot continue is computed from the start for each layer, with the same result.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode, without gradients.
    names : sequence of str
        Layers that every batch calls once, in the same order.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.

    Yields
    ------
    tuple of str and list of Tensor
        Each layer's name and its inputs, one tensor per batch, in the order of the calls.

    Raises
    ------
    InvalidArgumentError
        If batches call the layers in different orders, or a batch no longer calls a layer.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1))
    >>> batches = collect_batches([torch.ones(1, 2)], net)
    >>> for name, inputs in capture_inputs(net, ["0", "1"], batches):
    ...     _ = net[0].weight.data.fill_(3.0)  # the second layer will see it
    ...     print(name, inputs)
    0 [tensor([[1., 1.]])]
    1 [tensor([[6., 6.]])]
    """
    passes, blocks = [_Pass(model, batch) for batch in batches], _blocks(model)
    done: set[str] = set()
    for _ in names:
        with torch.no_grad(), evaluation_mode(model), _hooks(model, names, blocks, done) as hooks:
            stops = [one.advance(hooks) for one in passes]
        reached = {name for name, _ in stops}
        if len(reached) > 1:
            raise InvalidArgumentError(
                "batches call layers in different orders "
                f"({' and '.join(sorted(map(repr, reached)))} at the same place), so they "
                "cannot be fitted in sequence"
            )
        done |= reached
        inputs = [x for _, x in stops]
        del stops
        yield reached.pop(), inputs
        del inputs  # frees them while the passes continue


class _Stop(BaseException):
    """Ends a pass; it is no `Exception`, so that models that catch these let it through."""


class _Hooks:
    """Puts the calls of modules on a tape, and stops at the first layer that is not done."""

    def __init__(self, done: set[str]) -> None:
        self.tape: OpTape | None = None
        self.stop: tuple[str, Tensor] | None = None
        self._done = done

    def before(
        self, name: str, _: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
    ) -> None:
        if name in self._done or self.stop is not None:
            return
        if self.tape is not None:
            self.tape.stop()
        self.stop = name, (*arguments, *keywords.values())[0]
        raise _Stop

    def around(
        self, name: str, forward: Callable[..., Any], *arguments: Any, **keywords: Any
    ) -> Any:
        """Call the forward of a module through the tape."""
        if self.tape is None:
            return forward(*arguments, **keywords)
        return self.tape.call(name, forward, arguments, keywords)


@contextmanager
def _hooks(
    model: nn.Module, names: Sequence[str], blocks: Mapping[str, nn.Module], done: set[str]
) -> Iterator[_Hooks]:
    """Put hooks on all layers, and wrap the forward of blocks, for a while.

    Layers that are done keep a hook that does nothing, because stock modules of torch take a
    different path without hooks.
    """
    hooks = _Hooks(done)
    handles, forwards = [], []
    try:
        modules = dict(model.named_modules(remove_duplicate=False))
        for name in names:
            hook = partial(hooks.before, name)
            handles.append(modules[name].register_forward_pre_hook(hook, with_kwargs=True))
        for name, block in blocks.items():
            forwards.append((block, vars(block).get("forward")))
            vars(block)["forward"] = wraps(block.forward)(
                partial(hooks.around, name, block.forward)
            )
        yield hooks
    finally:
        for handle in handles:
            handle.remove()
        for block, forward in forwards:
            if forward is None:
                del vars(block)["forward"]
            else:
                vars(block)["forward"] = forward


def _blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Return the modules that have children, by name, except the model itself."""
    return {
        name: module
        for name, module in model.named_modules()
        if name and any(module.children()) and not isinstance(module, torch.jit.ScriptModule)
    }


class _Pass:
    """The forward pass of one batch, which continues from layer to layer."""

    def __init__(self, model: nn.Module, batch: Batch) -> None:
        self._model, self._batch = model, batch
        self._tape: OpTape | None = OpTape()

    def advance(self, hooks: _Hooks) -> tuple[str, Tensor]:
        """Go on to the next layer, and return its name and input."""
        if self._tape is not None:
            with suppress(Exception, DivergedError):
                return self._run(hooks)
            self._tape = None  # an error of the model itself is raised again below
        return self._run(hooks)

    def _run(self, hooks: _Hooks) -> tuple[str, Tensor]:
        hooks.tape, hooks.stop = self._tape, None
        with suppress(_Stop), self._tape or nullcontext():
            run_to_end(self._model, self._batch)
        if hooks.stop is None:
            raise InvalidArgumentError(
                "a batch calls fewer layers after others were pressed, so they cannot be fitted "
                "in sequence"
            )
        return hooks.stop
