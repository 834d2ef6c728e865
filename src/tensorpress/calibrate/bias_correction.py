"""Giving the channels of a changed model the mean outputs they had before."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.calibrate.batches import Batch, outside_contexts, run_model
from tensorpress.calibrate.patches import can_unfold
from tensorpress.measure.cost import evaluation_mode


def correct_biases(model: nn.Module, dense: nn.Module, batches: Sequence[Batch]) -> list[str]:
    """Shift the biases of a model so that its channels have the means of another's, in place.

    Rounding a weight moves the mean of what its layer puts out, and layers after it see inputs
    they were not trained on. In one pass over the batches the output of every layer and batch norm
    with a bias is shifted to the mean it has in the dense model, the layers before it being shifted
    already; the biases take the shifts.

    Parameters
    ----------
    model : nn.Module
        Of the same architecture as `dense`.
    dense : nn.Module
        What the means are taken from.
    batches : sequence of Batch
        From `tensorpress.calibrate.batches.collect_batches`.

    Returns
    -------
    list of str
        The names of the modules whose bias was shifted.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> dense, model = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> x = torch.randn(50, 2)
    >>> correct_biases(model, dense, collect_batches([x], dense))
    ['']
    >>> torch.allclose(model(x).mean(0), dense(x).mean(0), atol=1e-6)
    True
    """
    means: dict[str, list[Tensor]] = {}
    shifts: dict[str, list[Tensor]] = {}

    def note(name: str, axis: int) -> Callable[..., None]:
        @outside_contexts()
        def hook(_: nn.Module, __: Any, found: Tensor) -> None:
            means.setdefault(name, []).append(_mean(found, axis))

        return hook

    def shift(name: str, axis: int) -> Callable[..., Tensor]:
        @outside_contexts()
        def hook(_: nn.Module, __: Any, found: Tensor) -> Tensor:
            moved = means[name].pop(0) - _mean(found, axis)
            shifts.setdefault(name, []).append(moved)
            shape = [1] * found.ndim
            shape[axis] = -1
            return found + moved.reshape(shape).to(found.dtype)

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for net, watch in ((dense, note), (model, shift)):
            stack.enter_context(evaluation_mode(net))
            for name, module in net.named_modules():
                if (axis := _channels(module)) is not None:
                    hook = module.register_forward_hook(watch(name, axis))
                    stack.callback(hook.remove)
        for batch in batches:
            run_model(dense, batch)
            run_model(model, batch)
        for name, moved in shifts.items():
            bias = model.get_submodule(name).get_parameter("bias")
            bias.add_(torch.stack(moved).mean(0).to(bias))
    return list(shifts)


def _channels(module: nn.Module) -> int | None:
    """Return the axis of the channels of a module with a bias of its own, None for any other."""
    if module._parameters.get("bias") is None:
        return None
    if isinstance(module, _BatchNorm):
        return 1
    if not can_unfold(module):
        return None
    return -1 if isinstance(module, nn.Linear) else -len(module.get_parameter("weight").shape) + 1


def _mean(found: Tensor, axis: int) -> Tensor:
    return found.movedim(axis, -1).flatten(0, -2).mean(0, dtype=torch.float64)
