"""A weight rebuilt from Tucker factors of its reshape, as a torch parametrization (ADA-Tucker)."""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor, nn

from tensorpress.decompose import cp_als, cp_to_tensor
from tensorpress.decompose.tensor_algebra import mode_product, tucker_to_tensor
from tensorpress.decompose.tucker import hooi
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.parametrization import (
    FactorizedWeight,
    Factors,
    RankFactor,
    factorized_weight,
)
from tensorpress.schemes.reshape_modes import choose_axes
from tensorpress.utils.formatting import format_shape

_UNIT = 0.625  # of the order of a usual layer's initial cores and matrices
_MAX_CONDITION = 1e4


class TuckerWeight(FactorizedWeight):
    """Parametrization of a weight by a core and one matrix per mode of its reshape.

    The ``weight`` of a layer becomes reshape(C ×₁ M₁ … ×_d M_d), rebuilt at every forward pass and
    differentiated by autograd (eqs. 1, 3 to 5 of the paper). If the modes are the axes of the
    weight, this is the plain Tucker decomposition; with a diagonal core it is CP (section 2.3).
    With a core that several layers share, it is SCADA-Tucker (section 2.4), where the gradient of
    the core is the sum over the layers (eq. 9).

    Parameters
    ----------
    shape : sequence of int
        Shape of the weight as torch stores it: (out, in, *kernel) or (out, in).
    modes : sequence of int
        Sizes (n_1, …, n_d) with the same product as ``shape``. A layer of lower order than its
        shared core has modes of size 1.
    ranks : sequence of int
        Shape (k_1, …, k_d) of the core. A rank above the size of its mode is useful only to other
        layers that share the core.
    diagonal : bool
        Whether the core is diagonal, stored as a vector of length k; all ranks must be equal.
    shared : bool
        Whether other layers share the core, so that assigning this weight is an error.
    reduced : bool
        Whether the first k_i rows of every matrix are fixed to a multiple of the identity, and only
        the others, (n_i - k_i, k_i), are stored. A core C ×₁ A and matrices M₁A⁻¹ rebuild the same
        weight for every A. Fixing A saves Σ k_i² values, and almost all weights can still be
        represented.

    Raises
    ------
    InvalidArgumentError
        If the product of the modes is not the weight's size, or the ranks do not fit.

    References
    ----------
    Zhong, Wei, Lin, Zhang (2019), "ADA-Tucker: Compressing Deep Neural Networks via Adaptive
    Dimension Adjustment Tucker Decomposition".

    Examples
    --------
    >>> conv = nn.Conv2d(20, 50, 5)
    >>> tucker = TuckerWeight(conv.weight.shape, (50, 25, 20), (5, 5, 5))
    >>> tucker.attach(conv)
    >>> conv.weight.shape, tucker.num_params
    (torch.Size([50, 20, 5, 5]), 600)
    """

    def __init__(
        self,
        shape: Sequence[int],
        modes: Sequence[int],
        ranks: Sequence[int],
        *,
        diagonal: bool = False,
        shared: bool = False,
        reduced: bool = False,
    ) -> None:
        super().__init__()
        self.shape, self.modes, self.ranks = tuple(shape), tuple(modes), tuple(ranks)
        self.diagonal, self.shared, self.reduced = diagonal, shared, reduced
        self.core = "diagonal" if diagonal else "reduced" if reduced else "full"
        reason = refuse_modes(self.shape, self.modes) or refuse_ranks(
            self.modes, self.ranks, self.core
        )
        if reduced and (diagonal or shared):
            reason = "reduced needs a full core that no other layer shares"
        if reason is not None:
            raise InvalidArgumentError(reason)
        self.scheme = "scada_tucker" if shared else "ada_tucker"
        self.options = {"modes": self.modes} | ({} if self.core == "full" else {self.core: True})
        self.axes = choose_axes(self.shape, self.modes)

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Shape of the stored core."""
        return self.ranks[:1] if self.diagonal else self.ranks

    @property
    def matrix_shapes(self) -> list[tuple[int, int]]:
        """Shapes of the stored matrices."""
        pairs = zip(self.modes, self.ranks, strict=True)
        return [(n - k if self.reduced else n, k) for n, k in pairs]

    def forward(self, core: Tensor, *matrices: Tensor) -> Tensor:
        """Rebuild the weight, of ``shape``, from a core and its matrices, of ``matrix_shapes``."""
        if self.reduced:
            matrices = tuple(torch.cat([_UNIT * torch.eye(m.shape[1]).to(m), m]) for m in matrices)
        product = cp_to_tensor if self.diagonal else tucker_to_tensor
        permuted = product(core, matrices).reshape([self.shape[axis] for axis in self.axes])
        return permuted.permute([self.axes.index(axis) for axis in range(len(self.axes))])

    @property
    def factor_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the core and the matrices."""
        return [self.core_shape, *self.matrix_shapes]

    def right_inverse(self, weight: Tensor) -> Factors:
        """Decompose a dense weight, unless other layers share the core."""
        if self.shared and self._factors is None:
            raise InvalidArgumentError(
                "other layers share the core of this weight: materialize it before setting it"
            )
        return super().right_inverse(weight)

    def decompose(self, weight: Tensor) -> Factors:
        """Decompose a dense weight: HOOI, or alternating least squares for a diagonal core."""
        tensor = self.reshape(weight)
        if self.diagonal:
            cp = cp_als(tensor, self.ranks[0])
            core, factors = cp.weights, cp.factors
        else:
            tucker = hooi(tensor, self.ranks)
            core, factors = tucker.core, tucker.factors
        if self.reduced:
            return _reduce(core, factors)
        core, [matrices] = balance_tucker(core, [factors])
        return core, *matrices

    def rank_factors(self, factors: Sequence[Tensor]) -> list[RankFactor]:
        """Return core and matrices with their ranks; none are known of reduced matrices."""
        if self.reduced:  # their first rows are fixed, and never zero
            return []
        order = (0,) * len(self.ranks) if self.diagonal else range(len(self.ranks))
        core, *matrices = (factor.unsqueeze(0) for factor in factors)
        return [
            RankFactor(core, {axis + 1: axis for axis in range(core.ndim - 1)}),
            *(RankFactor(m, {2: rank}) for m, rank in zip(matrices, order, strict=True)),
        ]

    def reshape(self, weight: Tensor) -> Tensor:
        """Return a dense weight as the tensor (n_1, …, n_d) to decompose."""
        return weight.permute(self.axes).reshape(self.modes)

    def balanced_std(self, std: float) -> float:
        """Return the deviation s of all factors that gives the weight deviation ``std``.

        An entry of the weight is a sum of t products of d + 1 independent values, where t is the
        number of entries of the core, so s^{2(d+1)}·t = std².
        """
        return float((std * std / prod(self.core_shape)) ** (0.5 / (len(self.modes) + 1)))

    def draw_core(self, std: float, generator: torch.Generator) -> Tensor:
        """Draw a core of deviation ``std``."""
        return std * torch.randn(*self.core_shape, generator=generator, device="cpu")

    def draw(self, std: float, core: Tensor, like: Tensor, generator: torch.Generator) -> Factors:
        """Draw matrices for a core, scaled so that the weight has deviation ``std`` exactly.

        The deviation of a sum of long products varies a lot between draws. If the matrices are
        reduced, the core is scaled instead.

        Parameters
        ----------
        std : float
            Deviation of the weight.
        core : Tensor
            The core, on the CPU.
        like : Tensor
            Gives dtype and device of the result.
        generator : torch.Generator
            Generator of the draw, on the CPU.
        """
        matrices = [
            torch.randn(*shape, generator=generator, device="cpu") for shape in self.matrix_shapes
        ]
        if self.reduced:
            matrices = [m * (_UNIT / sqrt(m.shape[1])) for m in matrices]
            core = core * (std / float(self(core, *matrices).square().mean().sqrt()))
            return tuple(factor.to(like) for factor in (core, *matrices))
        scale = (std / float(self(core, *matrices).square().mean().sqrt())) ** (1 / len(matrices))
        return tuple(factor.to(like) for factor in (core, *(m * scale for m in matrices)))

    def extra_repr(self) -> str:
        """Return the modes and the core for torch's representation."""
        kind = "" if self.core == "full" else f"{self.core} "
        return f"{format_shape(self.modes)}, {kind}core {format_shape(self.ranks)}"


def refuse_modes(shape: Sequence[int], modes: Sequence[int]) -> str | None:
    """Return why a weight cannot be reshaped into modes, or None if it can."""
    if prod(modes) == prod(shape) and min(modes, default=0) >= 1:
        return None
    return (
        f"modes {format_shape(modes)} have {prod(modes):,} entries, "
        f"but the weight {format_shape(shape)} has {prod(shape):,}"
    )


def refuse_ranks(modes: Sequence[int], ranks: Sequence[int], core: str) -> str | None:
    """Return why a core cannot have these ranks, or None if it can.

    Parameters
    ----------
    modes, ranks : sequence of int
        Modes of the weight, and the ranks.
    core : {"full", "diagonal", "reduced"}
        Kind of the core.
    """
    shape, sizes = format_shape(ranks), format_shape(modes)
    if len(ranks) != len(modes) or min(ranks) < 1:
        return f"modes {sizes} need {len(modes)} ranks of at least 1, got {shape}"
    if core == "diagonal" and len(set(ranks)) > 1:
        return f"a diagonal core needs equal ranks, got {shape}"
    if core == "reduced" and any(k > n for k, n in zip(ranks, modes, strict=True)):
        return f"ranks {shape} exceed the modes {sizes}, so the matrices cannot be reduced"
    return None


def tucker_weight(module: nn.Module) -> TuckerWeight | None:
    """Return the Tucker parametrization of a layer's weight, or None."""
    form = factorized_weight(module)
    return form if isinstance(form, TuckerWeight) else None


def balance_tucker(core: Tensor, layers: Sequence[Factors]) -> tuple[Tensor, list[Factors]]:
    """Scale a core and the matrices of its layers to similar root mean squares.

    The weights do not change. The matrices of a layer get equal sizes, and the core gets the
    geometric mean of the sizes that each layer alone would give it. Equal sizes suit training and
    quantization.

    Parameters
    ----------
    core : Tensor
        The core, of one layer or shared.
    layers : sequence of tuple of Tensor
        The matrices of every layer that uses the core.

    Examples
    --------
    >>> core, [(matrix,)] = balance_tucker(torch.tensor([4.0]), [(torch.tensor([[1.0]]),)])
    >>> core.item(), matrix.item()
    (2.0, 2.0)
    """
    order = len(layers[0])
    products = [prod(map(_rms, matrices)) * _rms(core) for matrices in layers]
    if min(products) == 0:
        return core, list(layers)
    size = prod(p ** (1 / ((order + 1) * len(layers))) for p in products)
    scaled = [
        tuple(m * ((product / size) ** (1 / order) / _rms(m)) for m in matrices)
        for matrices, product in zip(layers, products, strict=True)
    ]
    return core * (size / _rms(core)), scaled


def _reduce(core: Tensor, matrices: Sequence[Tensor]) -> Factors:
    """Change the basis of every mode so that the first rows of its matrix are fixed."""
    rows = []
    for mode, matrix in enumerate(matrices):
        first = matrix[: matrix.shape[1]]
        if not float(torch.linalg.cond(first.double())) <= _MAX_CONDITION:  # NaN, of zeros
            raise InvalidArgumentError(
                f"mode {mode} cannot be reduced: the first rows of its matrix are nearly linearly "
                "dependent; start from random factors, or leave reduced out"
            )
        core = mode_product(core, first / _UNIT, mode)
        rows.append(torch.linalg.solve(first, matrix[len(first) :], left=False) * _UNIT)
    return core, *rows


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())
