"""Rate-distortion rounding: chooses symbols by their error and their bits."""

from dataclasses import dataclass
from math import ceil, inf

import torch
from torch import Tensor

from tensorpress.codec.static_tables import symbol_counts

_REACH = 1 << 15  # larger symbols cost as much as this one
_PASSES = 2  # rounds of fitting costs to symbols and choosing symbols by costs
_PRICED = 256  # larger magnitudes are rounded to nearest, because their costs hardly differ
_COST_SAMPLE = 1 << 16  # values of a tensor to which costs are fitted
_BLOCK = 1 << 15  # values that fit into a cache
_EXACT = 1 << 12  # steps up to which float32 is precise enough
_NEAREST = torch.tensor([-inf, -inf])  # the first magnitudes without costs
_OFFSETS = torch.tensor([0.0, 1.0, 2.0, inf], dtype=torch.float64)  # of candidates


@dataclass(frozen=True)
class SymbolCosts:
    """The bits that an entropy coder would spend if it knew the frequency of each symbol.

    Attributes
    ----------
    bits : Tensor
        Bits of a symbol of magnitude 0, 1, … r, float64, shape (r + 1,).
    """

    bits: Tensor

    @staticmethod
    def from_symbols(symbols: Tensor) -> "SymbolCosts":
        """Return the costs for the histogram of symbols, with both signs equally likely.

        Parameters
        ----------
        symbols : Tensor
            Integers, any shape, at least one.

        Examples
        --------
        >>> costs = SymbolCosts.from_symbols(torch.tensor([0, 0, 0, 0, 0, 0, 1, -1]))
        >>> bool(costs(torch.tensor(0)) < costs(torch.tensor(1)))
        True
        """
        magnitudes = symbols.abs().flatten().clamp(max=_REACH).long()
        counts = torch.bincount(magnitudes, minlength=int(magnitudes.max()) + 3).double()
        # m_s: the count of symbol s (half the count of its magnitude), plus 0.1.
        masses = counts / 2
        masses[0] = counts[0]
        masses += 0.1
        # bits_s = -log2(m_s / (m_0 + 2 sum_{s > 0} m_s))
        return SymbolCosts(-(masses / (2 * masses.sum() - masses[0])).log2())

    def __call__(self, symbols: Tensor) -> Tensor:
        """Return the bits of each symbol."""
        return self.bits[symbols.abs().clamp(max=len(self.bits) - 1).long()]


def coded_bits(symbols: Tensor) -> float:
    """Return an estimate of the bits that an adaptive coder spends on symbols.

    This is their entropy, except for symbols that occur once, which a coder cannot know in advance:
    these are counted as coded by their number of binary digits, then digit by digit. Otherwise the
    finest steps, at which all values differ, would cost no more than fine ones.

    Examples
    --------
    >>> coded_bits(torch.tensor([0, 0, 2, 2]))
    4.0
    >>> coded_bits(torch.tensor([4, -5, 6, 7])), coded_bits(torch.tensor([40, -50, 60, 34]))
    (12.0, 24.0)
    """
    values, counts = symbol_counts(symbols)
    # Classes: each symbol that occurs more than once, and the numbers of digits of the others.
    once = counts == 1
    digits = values[once].abs().double().frexp().exponent
    masses = torch.cat([counts[~once], torch.bincount(digits.long())]).double()
    masses = masses[masses > 0]
    # sum_c m_c log2(n / m_c) + digits; a first digit is always 1, and the sign takes its place.
    return float((masses * (symbols.numel() / masses).log2()).sum() + digits.sum())


def choose_symbols(
    values: Tensor, weight: float | Tensor, price: float, costs: SymbolCosts
) -> Tensor:
    """Return for each value the symbol that minimizes weight · (value - symbol)² + price · bits.

    Parameters
    ----------
    values : Tensor
        Values in steps, float64, any shape.
    weight : float or Tensor
        The weight of a squared error of one step, for all values or of their shape.
    price : float
        The price of a bit, in squared steps.
    costs : SymbolCosts
        The bits of each symbol.

    Returns
    -------
    Tensor
        Whole numbers in float64, the shape of `values`: the nearest symbol, one of the next two
        towards zero, or zero.

    Examples
    --------
    >>> costs = SymbolCosts.from_symbols(torch.tensor([0, 0, 0, 1, -1]))
    >>> choose_symbols(torch.tensor([0.6, 0.9]).double(), 1.0, 0.2, costs).tolist()
    [0.0, 1.0]
    """
    magnitudes = values.abs()
    # Candidates along a new first axis: |q| = round(|w|) - 0, 1, 2, and 0.
    offsets = _OFFSETS.view(-1, *(1,) * magnitudes.dim())
    candidates = (magnitudes.round() - offsets).clamp(min=0)
    # weight (|w| - |q|)² + price bits(q)
    objective = (magnitudes - candidates).square_().mul_(weight)
    objective.add_(costs(candidates), alpha=price)
    best = objective.min(0, keepdim=True).indices
    return candidates.gather(0, best).squeeze(0).copysign(values)


def first_magnitudes(costs: SymbolCosts, price: float) -> Tensor:
    """Return the magnitude, in steps, from which on each symbol is worth its bits.

    With costs (w - k)² + λ b_k, the best symbol at magnitude w changes from k - 1 to k at
    t_k = k - 1/2 + λ (b_k - b_(k - 1)) / 2. If these are not in order, some symbols are never worth
    their bits, and neighbours share the mean of their t_k (pool adjacent violators: the slopes of
    the lower convex hull of the points (k, k² + λ b_k)).

    Parameters
    ----------
    costs : SymbolCosts
        The bits b of each symbol.
    price : float
        The price λ of a bit, in squared steps.

    Returns
    -------
    Tensor
        float32, ascending, shape (symbols + 1,): -inf for 0, and -inf at the end for all larger
        symbols, which are not changed.

    Examples
    --------
    >>> costs = SymbolCosts(torch.tensor([1.0, 3.0, 3.0]).double())
    >>> first_magnitudes(costs, 0.2).tolist()
    [-inf, 0.699999988079071, 1.5, -inf]
    """
    bits = costs.bits[:_PRICED]
    starts = torch.arange(1, len(bits)) - 0.5 + price / 2 * bits.diff()
    if bool((starts.diff() < 0).any()):
        pools: list[tuple[float, int]] = []
        for pool in ((start, 1) for start in starts.tolist()):
            while pools and pools[-1][0] > pool[0]:
                mean, count = pools.pop()
                total = count + pool[1]
                pool = ((mean * count + pool[0] * pool[1]) / total, total)
            pools.append(pool)
        starts = torch.tensor([mean for mean, count in pools for _ in range(count)])
    ends = torch.tensor([-inf])
    return torch.cat([ends, starts.float(), ends])


def round_values(values: Tensor, price: float = 0.0, step: float = 1.0) -> Tensor:
    """Return symbols for values: the nearest ones, or with a price the best by error and bits.

    Parameters
    ----------
    values : Tensor
        Values, floating point, any shape.
    price : float
        The price of a bit in squared steps; at high rates a bit is worth ln 2 / 6 ≈ 0.116. The
        costs of symbols are fitted to a sample of a large tensor.
    step : float
        The distance between two levels.

    Returns
    -------
    Tensor
        int32 symbols on the CPU, the shape of `values`.

    Examples
    --------
    >>> round_values(torch.tensor([0.4, -1.6])).tolist()
    [0, -2]
    """
    flat = values.detach().cpu().reshape(-1)
    starts = _NEAREST
    if price and flat.numel():
        sample = sample_values(flat, _COST_SAMPLE)
        symbols = _round(sample, step, starts)
        for _ in range(_PASSES):
            starts = first_magnitudes(SymbolCosts.from_symbols(symbols), price)
            symbols = _round(sample, step, starts)
        if sample is flat:
            return symbols.reshape(values.shape)
    return _round(flat, step, starts).reshape(values.shape)


def sample_values(values: Tensor, count: int) -> Tensor:
    """Return a tensor of at most `count` values unchanged, and a random sample of a larger one."""
    if values.numel() <= count:
        return values
    flat = values.detach().cpu().reshape(-1)
    random = torch.Generator().manual_seed(flat.numel())
    return flat[torch.randint(flat.numel(), (count,), generator=random)]


def _round(values: Tensor, step: float, starts: Tensor) -> Tensor:
    """Return the nearest symbols, lowered while the magnitude is below the symbol's start."""
    largest = float(values.abs().max()) / step if values.numel() else 0.0
    dtype = torch.float32 if largest < _EXACT else torch.float64
    # the most symbols by which t_k exceeds k - 1/2
    above = starts[1:-1] - torch.arange(len(starts) - 2) - 0.5
    lowerings = max(ceil(float(above.max())), 0) if len(above) else 0
    result = torch.empty(values.shape, dtype=torch.int32)
    for start in range(0, len(values), _BLOCK):
        steps = values[start : start + _BLOCK].to(dtype) / step
        magnitudes = steps.abs()
        symbols = magnitudes.round().int()
        for _ in range(lowerings):
            first = starts.index_select(0, symbols.clamp(max=len(starts) - 1))
            symbols -= (magnitudes < first).int()
        result[start : start + _BLOCK] = symbols.mul_(steps.sign().int())
    return result
