"""Norms between the factors of chains, for training them from scratch."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.chain_builder import PressedLayer
from tensorpress.schemes.stages import pointwise_kernel

MOMENTUM, EPSILON = 0.1, 1e-5
"""As torch's batch norms have them."""


class ScaleNorm(nn.Module):
    """Batch norm that divides by the root mean square of a channel, and does not move its mean.

    Between two linear layers a mean that is moved has to come back as a bias, which zeros that the
    second one pads its input with make inexact. Without it the norm is a factor a channel, and
    belongs to the weights of the layer before, exactly.

    Parameters
    ----------
    channels : int
        Of the values.
    axis : int
        Of the channels, from the end.
    """

    mean_square: Tensor

    def __init__(self, channels: int, axis: int, *, like: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(like.new_ones(channels))
        self.register_buffer("mean_square", like.new_ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return normed values, of the same shape."""
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self._factor(self._seen(x)).reshape(shape).to(x.dtype)

    def factor(self) -> Tensor:
        """Return what a channel is multiplied by outside training."""
        return self._factor(self.mean_square)

    def _factor(self, mean_square: Tensor) -> Tensor:
        return self.weight * (mean_square + EPSILON).rsqrt()

    def _seen(self, x: Tensor) -> Tensor:
        if not self.training:
            return self.mean_square
        found = x.movedim(self.axis, -1).flatten(0, -2).float().square().mean(0)
        with torch.no_grad():
            self.mean_square.lerp_(found.to(self.mean_square), MOMENTUM)
        return found


@contextmanager
def factor_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Train a pressed model with a norm between the factors of every chain.

    Where factors were drawn, their product, and so their gradients, vary by orders of magnitude;
    norms between them hold the scale, as between layers.

    Parameters
    ----------
    model : nn.Module
        With layers in the form of chains. At the end of the block their factors have taken the
        norms in, and the model computes in eval mode what the normed one did.

    Yields
    ------
    nn.Module
        What to train: the model with its norms.

    Raises
    ------
    InvalidArgumentError
        If no layer is a chain.

    References
    ----------
    Tai, Xiao, Zhang, Wang, E (2016), "Convolutional neural networks with low-rank regularization",
    section 3, who use batch norm.

    Examples
    --------
    >>> from tensorpress.schemes.press_layer import press_layer
    >>> net = nn.Sequential(press_layer(nn.Linear(8, 6), "channel_svd", 2), nn.ReLU())
    >>> x = torch.randn(10, 8)
    >>> with factor_norms(net) as normed:
    ...     _ = normed(x)  # a step of training
    ...     expected = normed.eval()(x)
    >>> torch.allclose(net(x), expected, atol=1e-5)
    True
    """
    chains = [m for m in model.modules() if isinstance(m, PressedLayer) and len(m) > 1]
    if not chains:
        raise InvalidArgumentError("norms go between the layers of chains, and there is no chain")
    with ExitStack() as stack:
        norms = [_between(chain, stack) for chain in chains]
        normed = _Normed(model, norms)
        normed.train(model.training)
        yield normed
    with torch.no_grad():
        for chain, own in zip(chains, norms, strict=True):
            kernels = chain.kernels()
            for place, norm in enumerate(own):
                factor = norm.factor().reshape(*kernels[place].shape[:2], 1)
                kernels[place] = kernels[place] * pointwise_kernel(factor, chain.spec).to(
                    kernels[place]
                )
            chain.put(chain.balance(kernels))


class _Normed(nn.Module):
    """A model, and the norms that its layers call."""

    def __init__(self, model: nn.Module, norms: list[list[ScaleNorm]]) -> None:
        super().__init__()
        self.model = model
        self.norms = nn.ModuleList(norm for own in norms for norm in own)

    def forward(self, *given: Any, **named: Any) -> Any:
        """Return what the model does."""
        return self.model(*given, **named)


def _between(chain: PressedLayer, stack: ExitStack) -> list[ScaleNorm]:
    """Have every layer of a chain but the last call a norm of its own."""
    order, like = chain.spec.order, next(chain.parameters()).detach().float()
    found = []
    for layer, stage in list(zip(chain, chain.stages, strict=True))[:-1]:
        norm = ScaleNorm(stage.groups * stage.out, -1 - order, like=like)
        stack.callback(layer.register_forward_hook(_calling(norm)).remove)
        found.append(norm)
    return found


def _calling(norm: ScaleNorm) -> Callable[..., Tensor]:
    def hook(_: nn.Module, __: Any, found: Tensor) -> Tensor:
        scaled: Tensor = norm(found)
        return scaled

    return hook
