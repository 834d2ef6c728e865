"""Rank rules: a fixed number, a fraction, an energy, or EVBMF."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from operator import index
from typing import Any, ClassVar, Protocol, runtime_checkable

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.ranks.checks import SingularValues, check_ranks
from tensorpress.ranks.energy import check_fraction, energy_rank
from tensorpress.ranks.evbmf import evbmf

NAMES = ("energy:FRACTION", "evbmf", "evbmf:WEAKENING")
"""The rank rules that have a name."""


@runtime_checkable
class RankRule(Protocol):
    """A rule that chooses the ranks of a decomposition from its spectra and largest ranks."""

    @property
    def needs_spectra(self) -> bool:
        """Whether the rule uses the spectra; otherwise they need not be computed."""

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return one rank for each position, from 1 to the largest rank there.

        Parameters
        ----------
        spectra : sequence of Spectrum
            One spectrum per rank, in the same order; empty if the scheme has none. Leading axes of
            a spectrum are groups, which get one common rank.
        largest : sequence of int
            The largest rank at each position.

        Raises
        ------
        InvalidArgumentError
            If no such ranks exist, or the rule needs spectra and there are none.
        """


@dataclass(frozen=True)
class FixedRanks:
    """Fixed ranks, or one rank for every position; a rank above the largest one is an error.

    Parameters
    ----------
    values : tuple of int or int
        The ranks, each at least 1.

    Examples
    --------
    >>> FixedRanks((4, 8)).ranks([], (8, 8)), FixedRanks(4).ranks([], (8, 8))
    ((4, 8), (4, 4))
    """

    values: tuple[int, ...] | int
    needs_spectra: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min((self.values,) if isinstance(self.values, int) else self.values, default=1) < 1:
            raise InvalidArgumentError(f"ranks must be at least 1, got {self.values}")

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return the ranks, without using the spectra."""
        ranks = (self.values,) * len(largest) if isinstance(self.values, int) else self.values
        check_ranks(ranks, largest)
        return ranks


@dataclass(frozen=True)
class FractionRanks:
    """A fraction of the largest rank at every position, rounded and at least 1.

    Parameters
    ----------
    fraction : float
        The fraction, in (0, 1].

    Examples
    --------
    >>> FractionRanks(0.25).ranks([], (64, 30, 1))
    (16, 8, 1)
    """

    fraction: float
    needs_spectra: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return the ranks, without using the spectra."""
        return tuple(max(1, round(self.fraction * most)) for most in largest)


@dataclass(frozen=True)
class EnergyRanks:
    """The smallest ranks that keep a fraction of the energy Σσ² in every group.

    Parameters
    ----------
    fraction : float
        The fraction, in (0, 1].

    Examples
    --------
    >>> import torch
    >>> from tensorpress.decompose.spectrum import spectrum
    >>> EnergyRanks(0.66).ranks([spectrum(torch.diag(torch.tensor([2.0, 1.0, 1.0])))], (3,))
    (1,)
    """

    fraction: float
    needs_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(self.fraction)

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return one rank for each spectrum."""
        return _choose_ranks(
            lambda values, *_: energy_rank(values, self.fraction), spectra, largest
        )


@dataclass(frozen=True)
class EVBMFRanks:
    """The number of components above the noise; for several groups, the largest number.

    This rank is often too low for compression in one step. A weakening factor w goes only the
    fraction w of the way from the largest rank R down to it: R − round(w·(R − rank)).

    Parameters
    ----------
    weakening : float
        The factor w in (0, 1]; 1 gives the rank itself, 0.5 stops halfway.

    References
    ----------
    Nakajima et al. (2013), as in `evbmf`, for the rank. Gusak et al. (2019), "Automated multi-stage
    compression of neural networks" (MUSCO), for the weakening. There R is the rank after the last
    of several stages and at first the size of the mode; here it is always the largest rank of the
    unfolding. The code of the paper also truncates the result to an integer, and leaves ranks up to
    20 and unfoldings of pure noise unchanged, which this rule does not.

    Examples
    --------
    >>> import torch
    >>> from tensorpress.decompose.spectrum import spectrum
    >>> noise = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    >>> spectra = [spectrum(noise + 5 * torch.eye(8, 1))]
    >>> EVBMFRanks().ranks(spectra, (8,)), EVBMFRanks(0.7).ranks(spectra, (8,))
    ((1,), (3,))
    """

    weakening: float = 1.0
    needs_spectra: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_fraction(self.weakening)

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return one rank for each spectrum, which is at least 1 even for pure noise."""
        ranks = _choose_ranks(lambda *matrix: evbmf(*matrix).rank, spectra, largest)
        pairs = zip(ranks, largest, strict=True)
        return tuple(most - round(self.weakening * (most - rank)) for rank, most in pairs)


def parse_rank_rule(ranks: int | float | str | Sequence[int] | RankRule) -> RankRule:
    """Return the rank rule for a number, a sequence or a name.

    Parameters
    ----------
    ranks : int, float, str, sequence of int or RankRule
        A sequence means these ranks. An int means this rank at every position. A float in (0, 1]
        means this fraction of the largest rank, at least 1. "evbmf" means the number of components
        above the noise, and "evbmf:0.7" goes 0.7 of the way from the largest rank down to it.
        "energy:0.9" means the smallest rank that keeps this fraction of the energy Σσ².

    Raises
    ------
    InvalidArgumentError
        If ``ranks`` is anything else; the message lists what is possible.

    Examples
    --------
    >>> parse_rank_rule(0.5), parse_rank_rule([4, 8]), parse_rank_rule("energy:0.9")
    (FractionRanks(fraction=0.5), FixedRanks(values=(4, 8)), EnergyRanks(fraction=0.9))
    """
    if isinstance(ranks, RankRule):
        return ranks
    if isinstance(ranks, str):
        return _parse_name(ranks)
    if isinstance(ranks, Sequence):
        return FixedRanks(tuple(_to_int(rank, ranks) for rank in ranks))
    if isinstance(ranks, Real) and not isinstance(ranks, Integral):
        return FractionRanks(float(ranks))
    return FixedRanks(_to_int(ranks, ranks))


def _parse_name(name: str) -> RankRule:
    kind, _, argument = name.partition(":")
    rules: dict[str, type[EnergyRanks | EVBMFRanks]] = {"energy": EnergyRanks, "evbmf": EVBMFRanks}
    if name == "evbmf":
        return EVBMFRanks()
    if kind not in rules:
        raise unknown_name("rank rule", name, NAMES)
    try:
        return rules[kind](float(argument))
    except ValueError as error:
        raise InvalidArgumentError(
            f"rank rule {name!r}: expected a fraction in (0, 1] after '{kind}:', as in '{kind}:0.9'"
        ) from error


def _to_int(rank: Any, ranks: object) -> int:
    try:
        if isinstance(rank, bool):
            raise TypeError
        return index(rank)
    except TypeError as error:
        raise InvalidArgumentError(
            f"ranks must be an int, a float in (0, 1], a sequence of ints, or one of "
            f"{', '.join(NAMES)}; got {ranks!r}"
        ) from error


def _choose_ranks(
    choose_rank: Callable[[SingularValues, int, int], int],
    spectra: Sequence[Spectrum],
    largest: Sequence[int],
) -> tuple[int, ...]:
    """Return the rank for each spectrum, from 1 to the largest rank.

    Parameters
    ----------
    choose_rank : callable
        Function from the singular values of a matrix and its numbers of rows and columns to a rank.
        Of several groups, the largest rank counts.
    spectra, largest
        The arguments of the rule.
    """
    if largest and not spectra:
        raise InvalidArgumentError(
            "this rank rule needs the spectra of a matrix, which this scheme does not have: "
            "give a number or a fraction"
        )
    ranks = []
    for matrix, most in zip(spectra, largest, strict=True):
        groups = matrix.values.reshape(-1, matrix.values.shape[-1]).cpu()
        needed = max(choose_rank(values, matrix.rows, matrix.columns) for values in groups)
        ranks.append(min(max(needed, 1), most))
    return tuple(ranks)
