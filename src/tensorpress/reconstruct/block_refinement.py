"""Refines the blocks of a pressed model: trains them to give the dense blocks' outputs."""

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from tensorpress.calibrate.batches import Batch, run_model, without_cache
from tensorpress.calibrate.outputs import floating_tensors
from tensorpress.measure.cost import evaluation_mode
from tensorpress.schemes.parametrization import factorized_weight
from tensorpress.schemes.pressed_layer import Pressed

logger = logging.getLogger("tensorpress.press")

RATE = 3e-3
"""Largest step of Adam, relative to a parameter's root mean square: reached after `WARM_UP`."""

PATIENCE = 2
"""A block is done after this many passes without progress on held-out examples."""

WARM_UP = 0.1
"""Share of the steps in which the rate grows; a block without progress by then is given up."""

TRIED, LEAST_TRIED = 0.25, 4
"""Refinement stops if outputs have not improved after this share, and this least number, of
blocks."""

PROGRESS = 0.01
"""An error that falls by less than this share is no progress."""

HELD_OUT = 0.2
"""Share of the batches held out to decide when to stop."""

MEMORY = 1 << 29
"""Most bytes of recorded inputs and outputs of a block; further batches are left out."""


_TINY = 1e-30


@dataclass(frozen=True)
class Refined:
    """The result of refining a block.

    Attributes
    ----------
    name : str
        Name of the block; "" is the model.
    before, after : float
        Relative error of the block's outputs on held-out batches, with the inputs that the pressed
        model before it gives.
    """

    name: str
    before: float
    after: float


def refine_blocks(
    model: nn.Module,
    dense: nn.Module,
    batches: Sequence[Batch],
    *,
    epochs: int = 10,
    seed: int = 0,
    rate: float = RATE,
    enough: float = 0.0,
) -> list[Refined]:
    r"""Train the blocks of a pressed model to give the outputs of the dense model's blocks.

    In the order of their calls, the parameters of each block :math:`f` minimize
    :math:`‖f(\hat x) - y‖^2` by Adam, where :math:`\hat x` are the block's inputs in the pressed
    model and y the outputs of the dense block in the dense model. The whole model is trained last.

    A fifth of the batches is held out. On these the best state of all passes is chosen, the state
    before training included, so no block gets worse on them. They also end training early: a block
    without progress in the first tenth of its steps is given up, and all remaining blocks are if
    the model's outputs have not improved after a quarter of them. Frozen parameters stay as they
    are. Blocks without gradients, and blocks that some batch does not call, are skipped.

    Parameters
    ----------
    model : nn.Module
        The pressed model, changed in place.
    dense : nn.Module
        The dense model, left as it is.
    batches : sequence of Batch
        Inputs; labels are ignored. With fewer than two batches nothing is done.
    epochs : int
        Most passes over the examples of a block.
    seed : int
        Seed of the order of batches.
    rate : float
        Largest step of Adam, relative to the root mean square of a parameter.
    enough : float
        Nothing is done if the relative error of the model's outputs is no larger than this.

    Returns
    -------
    list of Refined
        The blocks with their errors.

    References
    ----------
    Li et al. (2021), "BRECQ: pushing the limit of post-training quantization by block
    reconstruction".
    """
    count = max(1, round(HELD_OUT * len(batches)))
    if len(batches) < 2 or epochs < 1:
        return []
    training, judging = batches[:-count], batches[-count:]
    with without_cache(model, dense):
        return _refine(model, dense, training, judging, (epochs, seed, rate), enough)


def _refine(
    model: nn.Module,
    dense: nn.Module,
    training: Sequence[Batch],
    judging: Sequence[Batch],
    how: tuple[int, int, float],
    enough: float,
) -> list[Refined]:
    results: list[Refined] = []
    blocks = find_blocks(model, training[0])
    outputs = _examples(model, dense, "", judging)
    whole = _error(model, outputs) if outputs else 0.0
    if whole <= enough:
        return []
    tried = max(LEAST_TRIED, ceil(TRIED * len(blocks)))
    given_up = False
    for place, name in enumerate([*blocks, ""]):
        if place == tried and name and _error(model, outputs) > (1 - PROGRESS) * whole:
            logger.info("outputs did not improve after %d of %d blocks", tried, len(blocks))
            given_up = True
        if given_up and name:
            continue
        fitted = _examples(model, dense, name, training)
        judged = _examples(model, dense, name, judging)
        if not fitted or not judged:
            continue
        block = model.get_submodule(name)
        before, after = _train(block, fitted, judged, *how)
        logger.info("block %s: error %.3f, before %.3f", name or "(the model)", after, before)
        results.append(Refined(name, before, after))
    return results


def find_blocks(model: nn.Module, batch: Batch) -> list[str]:
    """Return the names of a pressed model's blocks in the order of their calls.

    A block is a smallest module that contains pressed layers and is called once in a pass. The
    model itself is not listed.

    Parameters
    ----------
    model : nn.Module
        A pressed model.
    batch : Batch
        Inputs of a pass.
    """
    calls: Counter[str] = Counter()
    with ExitStack() as stack:
        for name, module in model.named_modules():
            hook = module.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
            stack.callback(hook.remove)
        with evaluation_mode(model), torch.no_grad():
            run_model(model, batch)
    layers = {name for name, module in model.named_modules() if _is_pressed(module)}
    inside = tuple(f"{name}." for name in layers)
    once = [
        name
        for name, times in calls.items()
        if name and times == 1 and name not in layers and not name.startswith(inside)
    ]  # in the order of calls
    holders = [name for name in once if any(layer.startswith(f"{name}.") for layer in layers)]
    return [name for name in holders if not any(x.startswith(f"{name}.") for x in holders)]


def _is_pressed(module: nn.Module) -> bool:
    return isinstance(module, Pressed) or factorized_weight(module) is not None


@dataclass(frozen=True)
class _Example:
    """A block's call in the pressed model, and the outputs of the dense block."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]


class _StopError(Exception):
    pass


def _examples(
    model: nn.Module, dense: nn.Module, name: str, batches: Sequence[Batch]
) -> list[_Example]:
    """Record the calls of a block, up to `MEMORY` bytes."""
    examples: list[_Example] = []
    size = 0
    for batch in batches:
        call, outputs = _record_call(model, name, batch), _record_outputs(dense, name, batch)
        if call is None or not outputs:  # the model took another branch
            continue
        args, kwargs = call
        examples.append(_Example(args, kwargs, outputs))
        tensors = [x for x in tree_leaves((args, kwargs, outputs)) if isinstance(x, Tensor)]
        size += sum(x.numel() * x.element_size() for x in tensors)
        if size > MEMORY:
            break
    return examples


def _record_call(model: nn.Module, name: str, batch: Batch) -> tuple[tuple[Any, ...], Any] | None:
    call: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.append(tree_map(_detached, (args, kwargs)))
        raise _StopError

    _run(
        model, batch, model.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True)
    )
    return call[0] if call else None


def _record_outputs(dense: nn.Module, name: str, batch: Batch) -> list[Tensor]:
    result: list[list[Tensor]] = []

    def record(_: nn.Module, __: Any, output: Any) -> None:
        result.append([x.detach().clone() for x in floating_tensors(output)])
        raise _StopError

    _run(dense, batch, dense.get_submodule(name).register_forward_hook(record))
    return result[0] if result else []


def _run(model: nn.Module, batch: Batch, hook: Any) -> None:
    try:
        with evaluation_mode(model), torch.no_grad():
            run_model(model, batch)
    except _StopError:
        pass
    finally:
        hook.remove()


def _detached(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _train(
    block: nn.Module,
    training: Sequence[_Example],
    judging: Sequence[_Example],
    epochs: int,
    seed: int,
    rate: float,
) -> tuple[float, float]:
    """Train a block; leave it in its best state on the held-out examples."""
    parameters = [p for p in block.parameters() if p.requires_grad]
    best = before = _error(block, judging)
    if not parameters or not _has_gradient(block, training[0]):
        return before, before
    state, random = [p.detach().clone() for p in parameters], torch.Generator().manual_seed(seed)
    groups = [
        {"params": [p], "lr": rate * max(float(p.detach().square().mean().sqrt()), 1e-3)}
        for p in parameters
    ]
    optimizer = torch.optim.Adam(groups)
    steps = epochs * len(training)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (WARM_UP * steps + 1), 1 - step / steps)
    )
    waited = 0
    with evaluation_mode(block):
        for epoch in range(epochs):
            for place in torch.randperm(len(training), generator=random).tolist():
                optimizer.zero_grad(set_to_none=True)
                with torch.enable_grad():
                    torch.autograd.backward(_squared_error(block, training[place]))
                optimizer.step()
                schedule.step()
            error = _error(block, judging)
            waited = 0 if error < best else waited + 1
            if error < best:
                best, state = error, [p.detach().clone() for p in parameters]
            warm = epoch + 1 >= WARM_UP * epochs
            if waited >= PATIENCE or (warm and best > (1 - PROGRESS) * before):
                break
    with torch.no_grad():
        for parameter, value in zip(parameters, state, strict=True):
            parameter.copy_(value)
            parameter.grad = None
    return before, best


def _has_gradient(block: nn.Module, example: _Example) -> bool:
    with evaluation_mode(block), torch.enable_grad():
        return _squared_error(block, example).requires_grad


def _squared_error(block: nn.Module, example: _Example) -> Tensor:
    """Return ‖f(x) − y‖² / ‖y‖² of an example."""
    # A block may change its inputs in place.
    args, kwargs = tree_map(_detached, (example.args, example.kwargs))
    outputs = list(floating_tensors(block(*args, **kwargs)))
    pairs = list(zip(outputs, example.outputs, strict=True))
    lost = sum(((x - y).float().square().sum() for x, y in pairs), start=torch.zeros(()))
    energy = sum(float(y.float().square().sum()) for _, y in pairs)
    return lost / max(energy, _TINY)


def _error(block: nn.Module, examples: Sequence[_Example]) -> float:
    with evaluation_mode(block), torch.no_grad():
        errors = [float(_squared_error(block, example)) for example in examples]
    return sqrt(sum(errors) / len(errors))
