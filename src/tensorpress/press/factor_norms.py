"""Batch norms between the factors of pressed layers, for training from scratch."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.chain_builder import PressedLayer

MOMENTUM, EPSILON = 0.1, 1e-5
"""The defaults of torch's batch norms."""


class ScaleNorm(nn.Module):
    """Batch norm that divides by the root mean square of a channel, without its mean.

    Subtracting a mean between two linear layers would add a bias, and the two could not be merged
    exactly if the second layer pads its input with zeros. The root mean square alone is one factor
    per channel, which is merged exactly into the weight of the first layer.

    Parameters
    ----------
    channels : int
        Number of channels.
    axis : int
        Axis of the channels, from the end.
    like : Tensor
        Tensor whose dtype and device the parameters get.
    """

    mean_square: Tensor

    def __init__(self, channels: int, axis: int, *, like: Tensor) -> None:
        super().__init__()
        self.axis = axis
        self.weight = nn.Parameter(like.new_ones(channels))
        self.register_buffer("mean_square", like.new_ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normed values, of the same shape."""
        mean_square = self.mean_square
        if self.training:
            # m_c = mean over all positions of x_c²; running mean: m̄ ← m̄ + 0.1 (m − m̄)
            mean_square = x.movedim(self.axis, -1).flatten(0, -2).float().square().mean(0)
            with torch.no_grad():
                self.mean_square.lerp_(mean_square.to(self.mean_square), MOMENTUM)
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * self.factor(mean_square).reshape(shape).to(x.dtype)

    def factor(self, mean_square: Tensor) -> Tensor:
        """Return the factors w_c / √(m_c + ε) of the channels."""
        return self.weight * (mean_square + EPSILON).rsqrt()


@contextmanager
def factor_norms(model: nn.Module) -> Iterator[nn.Module]:
    """Put a norm between the factors of every chain, for as long as the block runs.

    Products of random factors and their gradients vary by orders of magnitude, and norms between
    the factors fix the scale. At the end of the block the norms are multiplied into the factors:
    the model then computes what the normed model computed in eval mode.

    Parameters
    ----------
    model : nn.Module
        A pressed model, at least one of whose layers is a chain.

    Yields
    ------
    nn.Module
        The model with norms, to train.

    Raises
    ------
    InvalidArgumentError
        If the model has no chain.

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
        raise InvalidArgumentError("the model has no chain of layers to put norms into")
    with ExitStack() as stack:
        norms = [_insert_norms(chain, stack) for chain in chains]
        normed = _NormedModel(model, norms)
        normed.train(model.training)
        yield normed
    with torch.no_grad():
        for chain, chain_norms in zip(chains, norms, strict=True):
            kernels = chain.kernels()
            for i, norm in enumerate(chain_norms):
                # W_i ← diag(factor) W_i
                shape = (*kernels[i].shape[:2], *(1,) * (kernels[i].ndim - 2))
                kernels[i] = kernels[i] * norm.factor(norm.mean_square).reshape(shape).to(
                    kernels[i]
                )
            chain.put(chain.balance(kernels))


class _NormedModel(nn.Module):
    """A model with the norms that its layers call, so that an optimizer finds their parameters."""

    def __init__(self, model: nn.Module, norms: list[list[ScaleNorm]]) -> None:
        super().__init__()
        self.model = model
        self.norms = nn.ModuleList(norm for chain_norms in norms for norm in chain_norms)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the outputs of the model."""
        return self.model(*args, **kwargs)


def _insert_norms(chain: PressedLayer, stack: ExitStack) -> list[ScaleNorm]:
    """Add a norm after every layer of a chain except the last."""
    order, like = chain.kernels()[0].ndim - 3, next(chain.parameters()).detach().float()
    norms = []
    for layer, stage in list(zip(chain, chain.stages, strict=True))[:-1]:
        norm = ScaleNorm(stage.groups * stage.out, -1 - order, like=like)
        hook = layer.register_forward_hook(lambda _, __, outputs, norm=norm: norm(outputs))
        stack.callback(hook.remove)
        norms.append(norm)
    return norms
