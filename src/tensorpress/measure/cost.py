"""Exact costs: stored parameters and multiply–accumulates."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tensorpress.measure.model_inputs import ExampleInputs, ModelInputs
from tensorpress.schemes.parametrization import FactorizedWeight


def count_params(model: nn.Module) -> int:
    """Return the number of stored parameters; a parameter that layers share counts once.

    Examples
    --------
    >>> count_params(nn.Linear(30, 10))
    310
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_bytes(model: nn.Module) -> int:
    """Return the size of a model's parameters and buffers in bytes.

    Examples
    --------
    >>> count_bytes(nn.BatchNorm1d(10))
    168
    """
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def count_macs(model: nn.Module, inputs: ExampleInputs) -> int:
    """Return the multiply–accumulates of a forward pass per example.

    torch counts the convolutions and matrix products that run. Recurrent layers and attention
    therefore run as such operations here, not as a fused one that torch does not count. Rebuilding
    a weight from factors is not counted, because it is done once for any number of examples.

    Parameters
    ----------
    model : nn.Module
        The model, which runs in eval mode without gradients.
    inputs : Tensor, sequence or mapping
        Arguments of one forward pass, whose first axis is the batch; see `ModelInputs.parse`.

    Examples
    --------
    >>> count_macs(nn.Conv2d(3, 8, 3), [torch.zeros(2, 3, 10, 10)])
    13824
    """
    mapping = {torch.ops.aten._trilinear: _bilinear_flops}
    arguments = ModelInputs.parse(inputs)
    with (
        evaluation_mode(model),
        torch.no_grad(),
        _disable_fusion(),
        FlopCounterMode(display=False, custom_mapping=mapping) as counter,
        _rebuilding_flops(model, counter) as rebuilding,
    ):
        arguments.run(model)
    return int(counter.get_total_flops() - sum(rebuilding)) // (2 * arguments.batch)


@contextmanager
def _rebuilding_flops(model: nn.Module, counter: FlopCounterMode) -> Iterator[list[int]]:
    """Yield a list whose sum will be the operations for rebuilding weights from factors."""
    flops: list[int] = []
    with ExitStack() as hooks:
        for module in model.modules():
            if isinstance(module, FactorizedWeight):
                before, after = (
                    lambda *_: flops.append(-counter.get_total_flops()),
                    lambda *_: flops.append(counter.get_total_flops()),
                )
                hooks.enter_context(module.register_forward_pre_hook(before))
                hooks.enter_context(module.register_forward_hook(after))
        yield flops


@contextmanager
def freeze(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Set ``requires_grad`` of parameters to False in a block, and restore it afterwards."""
    required = {parameter: parameter.requires_grad for parameter in parameters}
    try:
        for parameter in required:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, value in required.items():
            parameter.requires_grad_(value)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model in eval mode in a block, and restore the mode of every module afterwards."""
    modes = {module: module.training for module in model.modules()}
    if any(modes.values()):
        model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            if module.training is not training:
                module.training = training


@contextmanager
def _disable_fusion() -> Iterator[None]:
    """Make torch run attention and recurrent layers as operations that it counts."""
    attention, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch.backends.mkldnn
    mkldnn_enabled = mkldnn.enabled
    torch.backends.mha.set_fastpath_enabled(False)
    mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(attention)
        mkldnn.enabled = mkldnn_enabled


def _bilinear_flops(left: torch.Size, weight: torch.Size, *_: object, out_shape: torch.Size) -> int:
    """Return twice the number of products in y_o = (x₁ᵀ W_o) x₂, over all rows and outputs."""
    outputs, inputs, others = weight
    return 2 * left[0] * outputs * (inputs * others + others)
