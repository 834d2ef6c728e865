"""Folding batch normalization into the layers before it."""

import logging
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure.cost import evaluating
from tensorpress.schemes.base import bias_of
from tensorpress.schemes.builder import PressedLayer
from tensorpress.schemes.factorized_weight import factorized_weight
from tensorpress.schemes.layer import canonical, kind_of, spec_of, stored, unpressable
from tensorpress.schemes.pressed import Pressed

logger = logging.getLogger("tensorpress.folding")

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_norms(model: nn.Module) -> list[str]:
    """Fold batch normalization into the layers before it, in place.

    In eval mode the model computes the same as before, to rounding. A folded norm has mean 0,
    variance 1 and weight 1; its scale is in the channels of the layer before it, and its bias is
    the whole shift: that layer's bias, if there is one, is 0. The norms stay where they are, with
    the same names in the ``state_dict``.

    A norm keeps its scale as its weight, with mean 0 and variance 1, where nothing can take it:
    before it is no layer with a weight, or one that is used elsewhere too, or one whose weight is
    rebuilt from factors. The logger ``tensorpress.folding`` tells which and why at level INFO. What
    is before a norm is found by `torch.fx.symbolic_trace`; where that cannot follow the model, all
    norms keep their scales.

    Parameters
    ----------
    model : nn.Module
        Dense or pressed. A Linear that a BatchNorm1d follows is taken to give vectors
        (N, features), and not sequences as long as they have features.

    Returns
    -------
    list of str
        The names of the norms whose mean is 0 and whose variance is 1 now. Left out are those
        without running statistics or with a forward pass of their own, those that share what they
        hold, and those without parameters whose scale nothing can take.

    Raises
    ------
    InvalidArgumentError
        Naming a norm with NaN or infinite values, or without values (on the meta device). The model
        is then untouched.

    Examples
    --------
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> _ = net[1].running_mean.fill_(0.5)
    >>> fold_norms(net), net[1].running_mean.unique().item(), net[1].weight.unique().item()
    (['1'], 0.0, 1.0)
    """
    use = _Use(model)
    folds = []
    for name, norm in model.named_modules():
        if not isinstance(norm, _BatchNorm):
            continue
        reason = use.unfit(norm)
        fold = None if reason else use.fold(name, norm)
        if fold is None:
            logger.info("norm %s is left: %s", name, reason or "nothing can take its scale")
        else:
            folds.append(fold)
    with torch.no_grad():
        for fold in folds:
            fold.apply()
    return [fold.name for fold in folds]


@dataclass(frozen=True)
class _Fold:
    """What a norm does to its input, in float64, and what takes it.

    The norm is x ↦ ``scale`` · x / √(1 + eps) + ``shift``. ``layer`` takes the scale, ``bias`` is
    the layer's, which the shift has in it; either may be None.
    """

    name: str
    norm: _BatchNorm
    layer: nn.Module | None
    bias: nn.Parameter | None
    scale: Tensor
    shift: Tensor

    def apply(self) -> None:
        norm, left = self.norm, self.scale
        assert norm.running_mean is not None
        assert norm.running_var is not None
        assert norm.num_batches_tracked is not None
        if self.layer is not None:
            weight = self.layer.get_parameter("weight")
            weight.copy_(_scaled(self.layer, self.scale))
            left = torch.ones_like(self.scale)
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        norm.num_batches_tracked.zero_()
        if norm.affine:
            norm.weight.copy_(left)
            norm.bias.copy_(self.shift)
            if self.bias is not None:
                self.bias.zero_()
        elif self.bias is not None:
            self.bias.copy_(self.shift * (1 + norm.eps) ** 0.5)


class _Use:
    """How a model uses its layers and norms."""

    def __init__(self, model: nn.Module) -> None:
        self._before: dict[nn.Module, nn.Module] = {}
        self._calls: Counter[nn.Module] = Counter()
        self._holders = Counter(
            id(tensor)
            for module in model.modules()
            for tensor in (*module._parameters.values(), *module._buffers.values())
        )
        self._obstacle = self._follow(model)

    def unfit(self, norm: _BatchNorm) -> str | None:
        """Return why nothing can be done about a norm, None where something can."""
        if isinstance(norm, nn.modules.lazy.LazyModuleMixin):
            return "it has no shape yet: run the model once"
        if "forward" in vars(norm) or type(norm).forward not in (
            _BatchNorm.forward,
            nn.SyncBatchNorm.forward,
        ):
            return "it has a forward pass of its own"
        if norm.running_mean is None or norm.running_var is None:
            return "it keeps no running statistics"
        if norm.affine and not {"weight", "bias"} <= norm._parameters.keys():
            return "its parameters are not plain ones"
        if self._shares(norm):
            return "it shares its parameters or statistics"
        return None

    def fold(self, name: str, norm: _BatchNorm) -> _Fold | None:
        """Return what becomes of a norm, None where nothing can take the scale it has."""
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.running_mean.is_meta:
            raise InvalidArgumentError(f"norm {name!r} is on the meta device: it has no values")
        layer, bias, reason = self._taker(norm)
        root = (norm.running_var.double() + norm.eps).sqrt()
        scale = (norm.weight.detach() if norm.affine else 1) / root
        mean = norm.running_mean.double()
        shift = ((0 if bias is None else bias.detach()) - mean) * scale
        if norm.affine:
            shift = shift + norm.bias.detach()
        scale = scale * (1 + norm.eps) ** 0.5
        if not bool((scale + shift).isfinite().all()):
            raise InvalidArgumentError(f"norm {name!r} has NaN or infinite values")
        if layer is not None and not bool(_scaled(layer, scale).isfinite().all()):
            reason, layer = "its layer's weight would not be finite", None
        if not norm.affine:
            taken = layer is not None and bias is not None
            return _Fold(name, norm, layer, bias, scale, shift) if taken else None
        if layer is None:
            logger.info("norm %s keeps its scale: %s", name, reason)
        return _Fold(name, norm, layer, bias, scale, shift)

    def _taker(self, norm: _BatchNorm) -> tuple[nn.Module | None, nn.Parameter | None, str]:
        """Return the layer that can take a norm's scale and the bias that the norm can take.

        Where there is no such layer, also why.
        """
        layer = self._before.get(norm)
        if layer is None:
            return None, None, self._obstacle or "there is no layer with a weight right before it"
        if not _channels_match(layer, norm):
            return None, None, "the channels of the layer before it are others"
        if max(self._calls[layer], self._calls[norm]) > 1 or self._shares(layer):
            return None, None, "it, or the layer before it, is used more than once"
        if layer._forward_hooks or norm._forward_pre_hooks:
            return None, None, "a hook is between it and the layer before it"
        reason = unpressable(layer)
        if reason is None:
            return layer, bias_of(layer), ""
        if isinstance(layer, Pressed) or factorized_weight(layer) is not None:
            return None, bias_of(layer), "the layer before it has a weight in factors"
        return None, None, f"the layer before it cannot take it: {reason}"

    def _shares(self, module: nn.Module) -> bool:
        """Whether other modules hold a tensor that a module holds itself."""
        own = (*module._parameters.values(), *module._buffers.values())
        return any(tensor is not None and self._holders[id(tensor)] > 1 for tensor in own)

    def _follow(self, model: nn.Module) -> str | None:
        """Note every layer that feeds a norm and nothing else; return why that cannot be known."""
        try:
            with evaluating(model):
                graph = _Tracer().trace(model)
        except Exception as error:  # whatever a model does that cannot be traced
            first = str(error).strip().partition("\n")[0] or type(error).__name__
            return f"the model cannot be traced: {first}"
        for node in graph.nodes:
            if node.op == "get_attr":
                self._calls[model.get_submodule(node.target.rpartition(".")[0])] += 1
            if node.op != "call_module":
                continue
            module = model.get_submodule(node.target)
            self._calls.update(module.modules())
            source = node.args[0] if node.args else None
            if not isinstance(module, _BatchNorm) or not isinstance(source, fx.Node):
                continue
            if source.op == "call_module" and len(source.users) == 1:
                before = model.get_submodule(str(source.target))
                if isinstance(before, Pressed) or kind_of(before) is not None:
                    self._before[module] = before
        return None


class _Tracer(fx.Tracer):
    """Follows a model down to layers and norms, into the chains of pressed layers."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, Pressed):
            return not isinstance(m, PressedLayer)
        known = isinstance(m, _BatchNorm) or kind_of(m) is not None
        return known or super().is_leaf_module(m, module_qualified_name)


def _channels_match(layer: nn.Module, norm: _BatchNorm) -> bool:
    """Whether a norm's channels are a layer's outputs."""
    spec: Any = layer.spec if isinstance(layer, Pressed) else spec_of(layer)
    expected = (_NORMS[max(spec.order, 1) - 1], nn.SyncBatchNorm)
    fits = isinstance(norm, expected) and spec.kind != "Embedding"
    return fits and spec.outputs == norm.num_features


def _scaled(layer: nn.Module, scale: Tensor) -> Tensor:
    """Return a layer's weight with its output channels scaled, in its dtype."""
    weight, spec = layer.get_parameter("weight").detach(), spec_of(layer)
    kernel = canonical(weight.double(), spec.groups, flipped=spec.flipped)
    by_channel = scale.reshape(spec.groups, spec.out, *(1,) * (kernel.ndim - 2))
    return stored(kernel * by_channel, flipped=spec.flipped).to(weight.dtype)
