"""Presses a single layer, and makes it dense again."""

from copy import deepcopy

from torch import nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.parametrization import factorized_weight, rebuild
from tensorpress.schemes.pressed_layer import Pressed, layer_factors
from tensorpress.schemes.registry import scheme as find_scheme
from tensorpress.schemes.scheme import Ranks, Scheme


def press_layer(layer: nn.Module, scheme: str | Scheme, ranks: Ranks) -> nn.Module:
    """Return a layer pressed by a scheme; the layer itself is left unchanged.

    Parameters
    ----------
    layer : nn.Module
        A Linear, an Embedding, a Conv1d, 2d, 3d or a ConvTranspose1d, 2d, 3d.
    scheme : str or Scheme
        The name of a scheme (`tensorpress list` shows them), or a scheme.
    ranks
        A tuple, in the order of the scheme's paper; one int for all ranks; a float in (0, 1], the
        fraction of the largest ranks (1.0 for full ranks); or a rule: "evbmf", "energy:0.95", or
        any `RankRule`.

    Returns
    -------
    nn.Module
        A chain of stock layers (a layer-form scheme), or the layer with its weight rebuilt from
        factors (weight form); in the dtype, on the device and in the mode of ``layer``.

    Raises
    ------
    InvalidArgumentError
        If the layer cannot be pressed by this scheme, ranks are out of range, or values are not
        finite. The error is also a ValueError.

    Examples
    --------
    >>> conv = nn.Conv2d(8, 16, 3, stride=2, padding=1)
    >>> pressed = press_layer(conv, "tucker2", 1.0)
    >>> import torch
    >>> x = torch.randn(1, 8, 10, 10)
    >>> torch.allclose(pressed(x), conv(x), atol=1e-5)
    True
    """
    if isinstance(scheme, str):
        scheme = find_scheme(scheme)
    if not isinstance(scheme, Scheme):
        raise InvalidArgumentError(f"scheme must be a name or a Scheme, not {scheme!r}")
    return scheme.press(layer, ranks)


def unpress_layer(pressed: nn.Module) -> nn.Module:
    """Return the dense layer of a pressed layer, with the composed weight.

    Parameters
    ----------
    pressed : nn.Module
        A layer from `press_layer`, possibly trained since; it is left unchanged.

    Raises
    ------
    InvalidArgumentError
        If the layer is not pressed.

    Examples
    --------
    >>> unpress_layer(press_layer(nn.Linear(6, 4), "channel_svd", 2))
    Linear(in_features=6, out_features=4, bias=True)
    """
    if isinstance(pressed, Pressed):
        return _dense(pressed)
    if factorized_weight(pressed) is not None:
        layer = deepcopy(pressed)
        rebuild(layer)
        return layer
    raise InvalidArgumentError(f"this {type(pressed).__name__} is not a pressed layer")


def _dense(pressed: Pressed) -> nn.Module:
    weight, bias = pressed.dense_weight(), pressed.bias_parameter()
    layer = dense_layer(pressed.spec, like=weight)
    values = {"weight": weight} | ({} if bias is None else {"bias": bias.detach()})
    layer.load_state_dict(values)
    layer.requires_grad_(any(factor.requires_grad for factor in layer_factors(pressed)))
    if bias is not None:
        layer.get_parameter("bias").requires_grad_(bias.requires_grad)
    return layer.train(pressed.training)
