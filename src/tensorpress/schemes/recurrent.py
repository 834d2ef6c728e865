"""Recurrent torch layers whose weights are rebuilt from factors."""

from functools import wraps
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize


def read_current_weights(layer: nn.RNNBase) -> None:
    """Make an LSTM, a GRU or an RNN with parametrized weights read them at every forward pass.

    Torch stores the weights of these layers in a list, which would still contain the dense weights.
    The list becomes a property of the class that torch made for this layer alone.
    """
    kind: Any = type(layer)
    base = kind.__bases__[0]

    def flat_weights(self: nn.RNNBase) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    @wraps(base.forward)
    def forward(self: nn.RNNBase, *arguments: Any, **options: Any) -> Any:
        with parametrize.cached():  # a forward pass reads the list several times
            return base.forward(self, *arguments, **options)

    # Assignments to the list are ignored.
    kind._flat_weights = property(flat_weights, lambda self, weights: None)
    kind._init_flat_weights = kind._update_flat_weights = kind.flatten_parameters = _do_nothing
    kind.forward = forward
    layer.__dict__.pop("_flat_weights", None)
    layer.__dict__["_flat_weight_refs"] = []


def _do_nothing(layer: nn.RNNBase) -> None:
    """Do nothing: flattening for cuDNN would need dense weights."""
