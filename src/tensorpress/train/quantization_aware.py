"""Quantization-aware training: quantized forward pass, full-precision updates."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError, unknown_name


class StraightThrough:
    """The straight-through estimator: a context in which parameters have quantized values.

    Forward and backward pass run inside the context and use the quantized values. The optimizer
    step runs after it and applies their gradient to the latent full-precision values, even if the
    quantizer clips.

    Parameters
    ----------
    quantize : mapping of str to callable
        A quantizer for each parameter name: a function of the values that returns values of the
        same shape, dtype and device. A parameter that several modules share is quantized once, by
        the quantizer of its first name in the mapping.

    References
    ----------
    Courbariaux, Bengio and David, "BinaryConnect", NeurIPS 2015, algorithm 1; Bengio, Léonard
    and Courville, "Estimating or Propagating Gradients Through Stochastic Neurons", 2013.

    Examples
    --------
    >>> layer = nn.Linear(1, 1, bias=False)
    >>> _ = nn.init.constant_(layer.weight, 0.7)
    >>> with StraightThrough({"weight": torch.round})(layer):
    ...     layer.weight.item()
    1.0
    >>> round(layer.weight.item(), 3)
    0.7
    """

    def __init__(self, quantize: Mapping[str, Callable[[Tensor], Tensor]]) -> None:
        self.quantize = dict(quantize)

    @contextmanager
    def __call__(self, model: nn.Module) -> Iterator[None]:
        """Give the parameters of a model their quantized values until the block ends.

        Afterwards, even after an exception, every parameter has its latent tensor again.

        Raises
        ------
        InvalidArgumentError
            If the model lacks a parameter, or a quantizer changes shape, dtype or device.
        """
        latent: list[tuple[nn.Parameter, Tensor]] = []
        try:
            for parameter, name, quantizer in self._targets(model):
                values = self._quantize(parameter, name, quantizer)
                latent.append((parameter, parameter.data))
                parameter.data = values
            yield
        finally:
            for parameter, values in latent:
                parameter.data = values

    def _targets(
        self, model: nn.Module
    ) -> list[tuple[nn.Parameter, str, Callable[[Tensor], Tensor]]]:
        """Return every parameter to quantize, with its name and quantizer."""
        parameters = dict(model.named_parameters(remove_duplicate=False))
        targets: dict[nn.Parameter, tuple[str, Callable[[Tensor], Tensor]]] = {}
        for name, quantizer in self.quantize.items():
            if name not in parameters:
                raise unknown_name("parameter", name, parameters)
            targets.setdefault(parameters[name], (name, quantizer))
        return [(parameter, *target) for parameter, target in targets.items()]

    @staticmethod
    def _quantize(
        parameter: nn.Parameter, name: str, quantizer: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Return the quantized values of a parameter, after checking shape, dtype and device."""
        with torch.no_grad():
            # A copy, so that a quantizer that works in place cannot reach the latent values.
            quantized = quantizer(parameter.detach().clone())
        got = (tuple(quantized.shape), quantized.dtype, quantized.device)
        expected = (tuple(parameter.shape), parameter.dtype, parameter.device)
        if got != expected:
            raise InvalidArgumentError(
                f"the quantizer of {name!r} must return (shape, dtype, device) = {expected}, got "
                f"{got}"
            )
        return quantized
