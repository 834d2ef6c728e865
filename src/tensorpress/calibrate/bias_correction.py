"""Bias correction: shifts the mean outputs of a rounded model's channels to the dense model's."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.calibrate.batches import Batch, outside_contexts, run_model
from tensorpress.calibrate.patches import ANY_CONV, can_unfold
from tensorpress.measure.cost import evaluation_mode


def channel_means(model: nn.Module, batches: Sequence[Batch]) -> dict[str, list[Tensor]]:
    """Return the mean output of every channel of the layers and batch norms with a bias.

    Parameters
    ----------
    model : nn.Module
        The model, run in eval mode.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.

    Returns
    -------
    dict of str to list of Tensor
        For each name, one Tensor of shape (channels,) per call.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> net = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    >>> means = channel_means(net, collect_batches([torch.randn(5, 2)] * 4, net))
    >>> list(means), len(means["0"]), means["0"][0].shape
    (['0'], 4, torch.Size([3]))
    """
    means: dict[str, list[Tensor]] = {}

    def make_hook(name: str, axis: int) -> Callable[..., None]:
        @outside_contexts()
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            means.setdefault(name, []).append(_channel_means(output, axis))

        return hook

    with _output_hooks(model, make_hook):
        for batch in batches:
            run_model(model, batch)
    return means


def correct_biases(
    model: nn.Module, means: Mapping[str, Sequence[Tensor]], batches: Sequence[Batch]
) -> list[str]:
    """Shift a model's biases in place so that mean outputs match those of a dense model.

    Rounding a weight moves the mean of its layer's outputs, so later layers get inputs that they
    were not trained on. One pass over the batches shifts the output of every layer and batch norm
    with a bias to its mean in the dense model, after the layers before it were shifted. The mean
    shift over batches is then added to the bias.

    Parameters
    ----------
    model : nn.Module
        A model of the dense model's architecture.
    means : mapping of str to sequence of Tensor
        The mean outputs of the dense model on the same batches, from `channel_means`.
    batches : sequence of Batch
        Calibration data, from `tensorpress.calibrate.batches.collect_batches`.

    Returns
    -------
    list of str
        The names of the modules whose bias was shifted.

    References
    ----------
    Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV
    2019, section 4.2, with data.

    Examples
    --------
    >>> from tensorpress.calibrate.batches import collect_batches
    >>> dense, model = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> x = torch.randn(50, 2)
    >>> batches = collect_batches([x], dense)
    >>> correct_biases(model, channel_means(dense, batches), batches)
    ['']
    >>> torch.allclose(model(x).mean(0), dense(x).mean(0), atol=1e-6)
    True
    """
    expected = {name: iter(values) for name, values in means.items()}
    shifts: dict[str, list[Tensor]] = {}

    def make_hook(name: str, axis: int) -> Callable[..., Tensor]:
        @outside_contexts()
        def hook(_: nn.Module, __: Any, output: Tensor) -> Tensor:
            shift = next(expected[name]) - _channel_means(output, axis)
            shifts.setdefault(name, []).append(shift)
            shape = [1] * output.ndim
            shape[axis] = -1
            return output + shift.reshape(shape).to(output.dtype)

        return hook

    with _output_hooks(model, make_hook):
        for batch in batches:
            run_model(model, batch)
        for name, values in shifts.items():
            bias = model.get_submodule(name).get_parameter("bias")
            bias.add_(torch.stack(values).mean(0).to(bias))
    return list(shifts)


@contextmanager
def _output_hooks(model: nn.Module, make_hook: Callable[[str, int], Any]) -> Iterator[None]:
    """Register hooks on the outputs of modules with a bias; they get the name and channel axis."""
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(evaluation_mode(model))
        for name, module in model.named_modules():
            if (axis := _channel_axis(module)) is not None:
                stack.callback(module.register_forward_hook(make_hook(name, axis)).remove)
        yield


def _channel_axis(module: nn.Module) -> int | None:
    """Return the channel axis of a module with a bias, None for other modules."""
    if module._parameters.get("bias") is None:
        return None
    if isinstance(module, _BatchNorm):
        return 1
    if not can_unfold(module):
        return None
    return -1 - len(module.kernel_size) if isinstance(module, ANY_CONV) else -1


def _channel_means(output: Tensor, axis: int) -> Tensor:
    """Return the mean of each channel, shape (channels,)."""
    return output.movedim(axis, -1).flatten(0, -2).mean(0, dtype=torch.float64)
