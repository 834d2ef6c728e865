"""Adaptive dimension adjustment: the modes that a weight is reshaped into, and the core's shape.

ADA-Tucker (Zhong, Wei, Lin, Zhang 2019), section 2.2, asks for modes of similar sizes, neither too
large nor too many, and a nearly cubic core. A reshape cuts across the axes of the weight only where
it must: see `choose_axes`.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise, permutations
from math import prod
from operator import mul

from tensorpress.decompose.tucker import tucker_params
from tensorpress.errors import InvalidArgumentError

Shape = tuple[int, ...]

MAX_ORDER = 6
"""Highest order of a decomposition, as in the paper's tables."""

MAX_ALIGNED = 8
"""Most modes whose permutations are searched."""

CORE_SHARE = 0.5
"""Least share of the parameters that the core should have."""


@lru_cache(maxsize=4096)
def balanced_modes(size: int, order: int) -> Shape:
    """Return the ``order`` factors of ``size`` with the smallest sum, largest first.

    The smallest sum is the most balanced choice, and gives a cubic core the smallest matrices.

    Examples
    --------
    >>> balanced_modes(25_000, 4), balanced_modes(13, 2)
    ((25, 10, 10, 10), (13, 1))
    """
    if order == 1:
        return (size,)
    splits = (
        tuple(sorted((divisor, *balanced_modes(size // divisor, order - 1)), reverse=True))
        for divisor in _divisors(size)
    )
    return min(splits, key=lambda modes: (sum(modes), modes))


def largest_core(modes: Sequence[int], params: int) -> Shape | None:
    """Return the largest near-cubic core of a decomposition with at most ``params`` values.

    The side of the cube is as large as fits, cut to the size of each mode. What is left is spent on
    single modes, largest first. The result is None if even ranks of 1 are too many.

    Examples
    --------
    >>> largest_core((25, 20), 300), largest_core((25, 20), 40)
    ((6, 5), None)
    """
    side = 0
    while side < max(modes) and tucker_params(modes, _cube(modes, side + 1)) <= params:
        side += 1
    if side == 0:
        return None
    ranks = list(_cube(modes, side))
    for mode in sorted(range(len(modes)), key=lambda i: -modes[i]):
        larger = [*ranks[:mode], min(ranks[mode] + 1, modes[mode]), *ranks[mode + 1 :]]
        if tucker_params(modes, larger) <= params:
            ranks = larger
    return tuple(ranks)


def choose_modes(shape: Sequence[int], params: int) -> tuple[Shape, Shape]:
    """Choose order, modes and core of one weight for at most ``params`` stored values.

    The order is the lowest one whose core has at least half of the parameters, or else the one
    whose core has the largest share. Lower orders spend parameters on matrices of large modes;
    higher orders make modes so small that their ranks lose information.

    Parameters
    ----------
    shape : sequence of int
        Shape of the weight, in any layout; axes of size 1 do not matter.
    params : int
        Most parameters of core and matrices together.

    Returns
    -------
    modes, ranks : tuple of int
        Modes and core, aligned with the weight's axes by `align_modes`.

    Raises
    ------
    InvalidArgumentError
        If no order fits; the message has the smallest possible number.

    References
    ----------
    ADA-Tucker, sections 2.2.1 to 2.2.3; in section 2.4 cores "generally account for a major
    proportion". The threshold of one half is our choice.

    Examples
    --------
    >>> choose_modes((500, 800), 1150)
    ((32, 25, 25, 20), (5, 5, 5, 5))
    """
    size = prod(shape)
    candidates = []
    for order in range(2, MAX_ORDER + 1):
        modes = balanced_modes(size, order)
        ranks = largest_core(modes, params)
        if ranks is not None and (order == 2 or 1 not in modes):
            candidates.append((modes, ranks))
    if not candidates:
        raise InvalidArgumentError(
            f"a weight of shape {tuple(shape)} cannot have {params} parameters or fewer: "
            f"the smallest Tucker decomposition has {smallest_params(shape)}"
        )
    shares = [prod(ranks) / tucker_params(modes, ranks) for modes, ranks in candidates]
    best = max(range(len(shares)), key=lambda i: min(shares[i], CORE_SHARE))
    return align_modes(shape, *candidates[best])


def smallest_params(shape: Sequence[int]) -> int:
    """Return the fewest parameters that `choose_modes` accepts: ranks of 1 at the best order.

    Examples
    --------
    >>> smallest_params((500, 800))
    54
    """
    sizes = [balanced_modes(prod(shape), order) for order in range(2, MAX_ORDER + 1)]
    return min(1 + sum(modes) for modes in sizes if len(modes) == 2 or 1 not in modes)


@lru_cache(maxsize=4096)
def choose_axes(shape: Shape, modes: Shape) -> Shape:
    """Choose the order of axes in which a weight is reshaped into ``modes``.

    A boundary between two modes is clean if it falls between axes or splits one axis evenly. The
    result has the most clean boundaries, then the most between axes, then the first axes first.
    Files do not store it, so this rule must not change.

    Examples
    --------
    A kernel (out, in, 5, 5) is read as out × (5·5) × in:

    >>> choose_axes((50, 20, 5, 5), (50, 25, 20))
    (0, 2, 3, 1)
    """
    orders = permutations(range(len(shape)))
    return max(orders, key=lambda axes: _cleanness([shape[axis] for axis in axes], modes))


def align_modes(
    shape: Sequence[int], modes: Shape, ranks: Shape, *, keep_ranks: bool = False
) -> tuple[Shape, Shape]:
    """Reorder modes and their ranks so that they cut the weight's axes as little as possible.

    The order decides which entries of the weight share a mode.

    Parameters
    ----------
    shape : sequence of int
        Shape of the weight.
    modes, ranks : tuple of int
        The modes and their ranks; more than `MAX_ALIGNED` are not reordered.
    keep_ranks : bool
        Whether only modes of equal rank may change places, as a shared core demands.

    Examples
    --------
    >>> align_modes((500, 800), (40, 25, 20, 20), (5, 5, 5, 5))
    ((40, 20, 25, 20), (5, 5, 5, 5))
    """
    shape = tuple(shape)
    best = (modes, ranks)
    if len(modes) > MAX_ALIGNED:
        return best
    best_score = _best_cleanness(shape, modes)
    for order in permutations(range(len(modes))):
        candidate = tuple(modes[i] for i in order), tuple(ranks[i] for i in order)
        if keep_ranks and candidate[1] != ranks:
            continue
        score = _best_cleanness(shape, candidate[0])
        if score > best_score:
            best, best_score = candidate, score
    return best


@lru_cache(maxsize=65536)
def _best_cleanness(shape: Shape, modes: Shape) -> tuple[int, int]:
    sizes = set(permutations([n for n in shape if n > 1]))
    return max(_cleanness(order, modes) for order in sizes)


def _cleanness(axes: Sequence[int], modes: Sequence[int]) -> tuple[int, int]:
    """Count the clean boundaries between modes, and those that fall between axes."""
    edges = [1, *accumulate(axes, mul)]
    boundaries = list(accumulate(modes, mul))[:-1]
    even = [
        any(boundary % low == 0 and high % boundary == 0 for low, high in pairwise(edges))
        for boundary in boundaries
    ]
    return sum(even), sum(boundary in edges for boundary in boundaries)


def _cube(modes: Sequence[int], side: int) -> Shape:
    return tuple(min(side, n) for n in modes)


@lru_cache(maxsize=4096)
def _divisors(size: int) -> Shape:
    low = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
    return tuple(sorted({*low, *(size // d for d in low)}))
