"""Weight form: a layer stays what it is, and its weight is rebuilt from factors when it is used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError

Factors = tuple[Tensor, ...]
Options = Mapping[str, Any]
"""Options of a scheme by name: plain data, that is numbers, words, yes or no, and tuples of int."""

NO_OPTIONS: Options = MappingProxyType({})


@dataclass(frozen=True)
class RankFactor:
    """A factor (groups, …) of a pressed layer, and which rank some of its axes run over.

    Attributes
    ----------
    values : Tensor
        The factor.
    ranks : mapping of int to int
        From axes to places among the layer's ranks. Factors with a rank in common are joined by
        it: an index of it does nothing where the slice of one of them is zero.
    """

    values: Tensor
    ranks: Mapping[int, int]


class FactorizedWeight(nn.Module):
    """Base of the parametrizations that rebuild a weight from factors.

    A subclass has ``forward(*factors)``, the weight; ``decompose(weight)``, the factors of a dense
    weight; and the attributes.

    Attributes
    ----------
    shape : tuple of int
        Of the weight, as the layer holds it.
    ranks : tuple of int
        In the order of the scheme's paper.
    scheme : str
        Name of the scheme.
    options : mapping
        Options of the scheme that are not at their defaults.
    relative_error : float or None
        ‖W − Ŵ‖ / ‖W‖ of the weight when it was decomposed; None where it was not.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    scheme: str = ""
    options: Options = NO_OPTIONS
    relative_error: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self._given: Factors | None = None

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the factors, in their order."""
        raise NotImplementedError

    @property
    def num_params(self) -> int:
        """Number of stored values; of factors that layers share as well."""
        return sum(map(prod, self.factor_shapes))

    def decompose(self, weight: Tensor) -> Factors:
        """Return the factors of a dense weight of `shape`, in its dtype."""
        raise NotImplementedError

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        """Return given factors with their ranks, in one group; see `Pressed.rank_factors`."""
        return []

    def right_inverse(self, weight: Tensor) -> Factors:
        """Decompose a weight: torch calls this when it is assigned, and in `attach`."""
        if self._given is not None:
            return self._given
        check_shape(weight, self.shape)
        return self.decompose(weight)

    def attach(self, layer: nn.Module, factors: Factors | None = None) -> None:
        """Make this the parametrization of ``layer.weight``, at given factors or decomposing it."""
        self._given = factors
        parametrize.register_parametrization(layer, "weight", self)
        self._given = None


def check_shape(weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise an `InvalidArgumentError` unless a weight that is to be decomposed has a shape."""
    if weight.shape != shape:
        raise InvalidArgumentError(
            f"this layer needs a weight of shape {shape}, got {tuple(weight.shape)}"
        )


def factorized_weight(module: nn.Module) -> FactorizedWeight | None:
    """Return what a layer's weight is rebuilt by, None where it is a plain one."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    first = stored_factors(module)[0]
    return first if isinstance(first, FactorizedWeight) else None


def stored_factors(module: nn.Module) -> parametrize.ParametrizationList:
    """Return what holds a layer's factors, which torch names original0, original1 and so on."""
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    held = lists["weight"]
    assert isinstance(held, parametrize.ParametrizationList)
    return held


def rebuild(module: nn.Module) -> None:
    """Replace a layer's factors by the dense weight they stand for, in place.

    The weight is trained where any of its factors was.
    """
    trained = any(factor.requires_grad for factor in stored_factors(module).parameters())
    # Torch computes the weight in a property of a class made for the module, which a deep copy
    # shares; removing the parametrization deletes the property, for all copies.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    weight = module.weight
    assert isinstance(weight, Tensor)
    del module.weight  # a buffer where no factor was trained
    module.weight = nn.Parameter(weight.detach(), requires_grad=trained)
