"""Weight form: a layer stays what it is, and its weight is rebuilt from factors when it is used."""

from torch import Tensor, nn
from torch.nn.utils import parametrize

from tensorpress.errors import InvalidArgumentError

Factors = tuple[Tensor, ...]


class FactorizedWeight(nn.Module):
    """Base of the parametrizations that rebuild a weight from factors.

    A subclass has ``forward(*factors)``, the weight, and ``right_inverse(weight)``, the factors of
    a dense weight, which torch calls when the weight is assigned.

    Attributes
    ----------
    relative_error : float or None
        ‖W − Ŵ‖ / ‖W‖ of the weight when it was decomposed; None where it was not.
    """

    relative_error: float | None = None

    def __init__(self) -> None:
        super().__init__()
        self._given: Factors | None = None

    @property
    def num_params(self) -> int:
        """Number of stored values."""
        raise NotImplementedError

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
