"""Adaptive dimension adjustment: into which modes a weight is reshaped, and its core's size.

ADA-Tucker (Zhong, Wei, Lin, Zhang 2019), section 2.2: modes of similar sizes, neither too
large nor too many, and a core as near to a hypercube as they allow. A reshape may cut across the
weight's own axes, but where it need not it does not: see `axes_for`.
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
"""Highest order the choosers consider; the paper's tables end there, too."""

MAX_ALIGNED = 8
"""Most modes whose orders are searched."""

CORE_SHARE = 0.5
"""Part of the parameters the core should hold: with less, the matrices carry the layer."""


@lru_cache(maxsize=4096)
def balanced_modes(size: int, order: int) -> Shape:
    """Return the ``order`` factors of ``size`` with the smallest sum, largest first.

    At a given product the smallest sum is the most balanced choice, and the one whose
    transformation matrices are smallest for a cubic core.

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
    """Return the largest near-cubic core that keeps the decomposition within ``params`` values.

    The cube's side is as large as fits (in a mode smaller than that, the mode's size); what is
    left is spent on single modes, the largest first. None where even ranks of 1 are too many.

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
        grown = [*ranks[:mode], min(ranks[mode] + 1, modes[mode]), *ranks[mode + 1 :]]
        if tucker_params(modes, grown) <= params:
            ranks = grown
    return tuple(ranks)


def choose_modes(shape: Sequence[int], params: int) -> tuple[Shape, Shape]:
    """Choose order, modes and core of one weight for at most ``params`` stored values.

    Of the orders from 2 up, the lowest whose core holds at least half of the parameters is
    taken (in section 2.4's words, cores "generally account for a major proportion"): a lower
    order spends them on the matrices of large modes, a higher one cuts modes so small that
    their ranks lose information. Where no order gets that far, the one with the largest share.

    Parameters
    ----------
    shape : sequence of int
        Of the weight, in any layout; modes of size 1 do not matter.
    params : int
        Most values that core and matrices may have together.

    Returns
    -------
    modes, ranks : tuple of int
        Aligned with the weight's axes as far as possible.

    Raises
    ------
    InvalidArgumentError
        Where no order fits; the message names the smallest possible number.

    References
    ----------
    ADA-Tucker, sections 2.2.1 to 2.2.3. The threshold of one half is ours.

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
    enough = [i for i, share in enumerate(shares) if share >= CORE_SHARE]
    chosen = enough[0] if enough else max(range(len(shares)), key=shares.__getitem__)
    return align_modes(shape, *candidates[chosen])


def smallest_params(shape: Sequence[int]) -> int:
    """Return the fewest parameters that `choose_modes` takes: every rank 1, at the best order.

    Examples
    --------
    >>> smallest_params((500, 800))
    54
    """
    sizes = [balanced_modes(prod(shape), order) for order in range(2, MAX_ORDER + 1)]
    return min(1 + sum(modes) for modes in sizes if len(modes) == 2 or 1 not in modes)


@lru_cache(maxsize=4096)
def axes_for(shape: Shape, modes: Shape) -> Shape:
    """Return the order of axes in which a weight is reshaped into ``modes``.

    A reshape reads the axes in some order. A boundary between two modes is clean if it cuts at
    most one axis, evenly, so that every mode is a set of whole axes or of blocks of one. The
    order with the most clean boundaries is taken, then the most that fall between axes, then the
    one nearest to the weight's own; a pure function, so that a file need not store it.

    Examples
    --------
    A kernel (out, in, 5, 5) as out × (5·5) × in:

    >>> axes_for((50, 20, 5, 5), (50, 25, 20))
    (0, 2, 3, 1)
    """
    orders = permutations(range(len(shape)))
    return max(
        orders, key=lambda axes: (*_cleanness([shape[a] for a in axes], modes), _negated(axes))
    )


def align_modes(
    shape: Sequence[int], modes: Shape, ranks: Shape, *, keep_ranks: bool = False
) -> tuple[Shape, Shape]:
    """Reorder modes, with their ranks, so that they cut the weight's axes as little as possible.

    The order of modes is only a naming for a Tucker decomposition, but it decides which
    entries of the weight share a mode. With ``keep_ranks`` only modes of equal
    rank change places, as a core that other layers share demands. More than `MAX_ALIGNED` modes
    are left as they are given: too many orders to try.

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
    """Count the boundaries of modes that cut at most one axis evenly, and those that cut none."""
    edges = [1, *accumulate(axes, mul)]
    boundaries = list(accumulate(modes, mul))[:-1]
    even = [
        any(boundary % low == 0 and high % boundary == 0 for low, high in pairwise(edges))
        for boundary in boundaries
    ]
    return sum(even), sum(boundary in edges for boundary in boundaries)


def _negated(axes: Shape) -> Shape:
    return tuple(-axis for axis in axes)


def _cube(modes: Sequence[int], side: int) -> Shape:
    return tuple(min(side, n) for n in modes)


@lru_cache(maxsize=4096)
def _divisors(size: int) -> Shape:
    low = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
    return tuple(sorted({*low, *(size // d for d in low)}))
