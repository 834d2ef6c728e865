"""Weight form: the layer stays, and its weight is rebuilt from factors at every use."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_spec import LayerSpec
from tensorpress.schemes.options import NO_OPTIONS, Options
from tensorpress.schemes.recurrent import read_current_weights

Factors = tuple[Tensor, ...]


@dataclass(frozen=True)
class RankFactor:
    """A factor (groups, …) of a pressed layer, and the ranks that its axes run over.

    Attributes
    ----------
    values : Tensor
        The factor.
    ranks : mapping of int to int
        The index of the layer's rank for each axis that runs over one. Factors are contracted over
        the ranks they share, so an index has no effect if its slice is zero in one of them.
    """

    values: Tensor
    ranks: Mapping[int, int]


class FactorizedWeight(nn.Module):
    """Base of the parametrizations that rebuild a weight from factors.

    A subclass sets the attributes, and has ``forward(*factors)``, which returns the weight, and
    ``decompose(weight)``, which returns the factors of a dense weight.

    Attributes
    ----------
    shape : tuple of int
        Shape of the weight, as torch stores it.
    ranks : tuple of int
        Ranks, in the order of the scheme's paper.
    scheme : str
        Name of the scheme.
    options : mapping
        Options of the scheme that are not at their defaults.
    relative_error : float or None
        ‖W − Ŵ‖ / ‖W‖ of the weight when it was decomposed; None if it was not.
    spec : LayerSpec or None
        The spec of the dense layer; None if no scheme made this.
    unfitted : str or None
        Why the layer was not fitted to calibration data; None if it was, or there were none.
    """

    shape: tuple[int, ...]
    ranks: tuple[int, ...]
    scheme: str = ""
    options: Options = NO_OPTIONS
    relative_error: float | None = None
    spec: LayerSpec | None = None
    unfitted: str | None = None

    def __init__(self) -> None:
        super().__init__()
        self._factors: Factors | None = None

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the factors."""
        raise NotImplementedError

    @property
    def num_params(self) -> int:
        """Number of stored values, including factors shared with other layers."""
        return sum(map(prod, self.factor_shapes))

    def decompose(self, weight: Tensor) -> Factors:
        """Return the factors of a dense weight of `shape`, in its dtype."""
        raise NotImplementedError

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        """Return the factors, as one group, with the ranks of their axes; see `Pressed`."""
        return []

    def right_inverse(self, weight: Tensor) -> Factors:
        """Decompose a weight; torch calls this when a weight is assigned, and in `attach`."""
        if self._factors is not None:
            return self._factors
        check_shape(weight, self.shape)
        return self.decompose(weight)

    def attach(self, layer: nn.Module, factors: Factors | None = None, key: str = "weight") -> None:
        """Make this the parametrization of a weight of a layer.

        Parameters
        ----------
        layer : nn.Module
            The layer.
        factors : tuple of Tensor, optional
            The factors; by default the weight is decomposed.
        key : str
            Name of the weight in the layer.
        """
        self._factors = factors
        parametrize.register_parametrization(layer, key, self)
        self._factors = None
        if isinstance(layer, nn.RNNBase):
            read_current_weights(layer)
        # Torch made this class for the layer alone, and drops it with the parametrization.
        type(layer).__setattr__ = _set_attribute  # type: ignore[method-assign, assignment]


def _set_attribute(layer: nn.Module, name: str, value: Any) -> None:
    """Set an attribute of a layer; refuse a Parameter for a weight that is rebuilt."""
    form = factorized_weight(layer) if name == "weight" else None
    if form is not None and isinstance(value, nn.Parameter):
        raise InvalidArgumentError(
            f"the weight of a layer pressed by {form.scheme} is rebuilt from factors: fold batch "
            "norms, quantize or replace the weight before pressing, or make it dense again by "
            "tensorpress.materialize"
        )
    nn.Module.__setattr__(layer, name, value)


def check_shape(weight: Tensor, shape: tuple[int, ...]) -> None:
    """Raise an `InvalidArgumentError` unless a weight has the expected shape."""
    if weight.shape != shape:
        raise InvalidArgumentError(
            f"this layer needs a weight of shape {shape}, not {tuple(weight.shape)}"
        )


def factorized_weight(module: nn.Module, key: str = "weight") -> FactorizedWeight | None:
    """Return the module that rebuilds a weight of a layer, or None for a plain weight."""
    if not parametrize.is_parametrized(module, key):
        return None
    first = stored_factors(module, key)[0]
    return first if isinstance(first, FactorizedWeight) else None


def factorized_weights(module: nn.Module) -> dict[str, FactorizedWeight]:
    """Return the modules that rebuild weights of a layer, by the names of these weights."""
    keys = list(getattr(module, "parametrizations", ()))
    forms = ((key, factorized_weight(module, key)) for key in keys)
    return {key: form for key, form in forms if form is not None}


def stored_factors(module: nn.Module, key: str = "weight") -> parametrize.ParametrizationList:
    """Return the module that stores the factors of a weight: original0, original1, …."""
    lists = module.parametrizations
    assert isinstance(lists, nn.ModuleDict)
    factors = lists[key]
    assert isinstance(factors, parametrize.ParametrizationList)
    return factors


def rebuild(module: nn.Module, key: str = "weight") -> None:
    """Replace the factors of a layer's weight by the dense weight, in place.

    The weight requires gradients if any of its factors did.
    """
    requires_grad = any(factor.requires_grad for factor in stored_factors(module, key).parameters())
    # Torch computes the weight in a property of a class made for the module. Deep copies share this
    # class, and removing the parametrization would delete the property for all of them.
    shared = type(module)
    module.__class__ = type(shared.__name__, shared.__bases__, dict(vars(shared)))
    parametrize.remove_parametrizations(module, key, leave_parametrized=True)
    weight = getattr(module, key)
    assert isinstance(weight, Tensor)
    delattr(module, key)  # a buffer where no factor required gradients
    module.register_parameter(key, nn.Parameter(weight.detach(), requires_grad=requires_grad))
    if isinstance(module, nn.RNNBase) and not parametrize.is_parametrized(module):
        module._init_flat_weights()
