"""The rank rules a user names: a number, a fraction, an energy, or EVBMF."""

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
"""How a rule may be named in words."""


@runtime_checkable
class RankRule(Protocol):
    """How many components to keep, from the spectra and the largest ranks of a decomposition."""

    @property
    def needs_spectra(self) -> bool:
        """Whether the spectra are looked at; if not, they need not be computed."""

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return one rank for each of the largest ones, from 1 to it.

        Parameters
        ----------
        spectra : sequence of Spectrum
            One for each rank, in the same order; empty where the scheme has none. Leading axes of
            a spectrum are groups, which get one common rank.
        largest : sequence of int
            The largest rank at each position.

        Raises
        ------
        InvalidArgumentError
            If no such ranks exist, or the spectra that are needed are not there.
        """


@dataclass(frozen=True)
class FixedRanks:
    """These ranks, or one rank at every position; one above the largest is an error.

    Examples
    --------
    >>> FixedRanks((4, 8)).ranks([], (8, 8)), FixedRanks(4).ranks([], (8, 8))
    ((4, 8), (4, 4))
    """

    kept: tuple[int, ...] | int
    needs_spectra: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if min((self.kept,) if isinstance(self.kept, int) else self.kept, default=1) < 1:
            raise InvalidArgumentError(f"ranks must be at least 1, got {self.kept}")

    def ranks(self, spectra: Sequence[Spectrum], largest: Sequence[int]) -> tuple[int, ...]:
        """Return the ranks; spectra are not looked at."""
        ranks = (self.kept,) * len(largest) if isinstance(self.kept, int) else self.kept
        check_ranks(ranks, largest)
        return ranks


@dataclass(frozen=True)
class FractionRanks:
    """A fraction in (0, 1] of the largest rank at every position, rounded, at least 1.

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
        """Return the ranks; spectra are not looked at."""
        return tuple(max(1, round(self.fraction * most)) for most in largest)


@dataclass(frozen=True)
class EnergyRanks:
    """The smallest ranks that keep a fraction of the squared singular values, in every group.

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
        """Return the ranks, one a spectrum."""
        return _from_spectra(
            lambda values, *_: energy_rank(values, self.fraction), spectra, largest
        )


@dataclass(frozen=True)
class EVBMFRanks:
    """The number of components that stand out from the noise, of the groups the largest.

    That is few for one pass of compression. A weakening factor w takes the fraction w of the way
    from the largest rank R down to it: R − round(w·(R − rank)).

    Parameters
    ----------
    weakening : float
        w in (0, 1]; 1 takes the rank itself, 0.5 stops halfway.

    References
    ----------
    Gusak et al. (2019), "Automated multi-stage compression of neural networks" (MUSCO). There R is
    the rank in the last of several stages, at first the size of the mode; ours is the largest rank
    of the unfolding, every time. Their code, unlike this, cuts the result off to a whole number,
    and leaves ranks up to 20 and unfoldings of nothing but noise as they are.

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
        """Return the ranks, one a spectrum; a matrix of nothing but noise counts as rank 1."""
        found = _from_spectra(lambda *matrix: evbmf(*matrix).rank, spectra, largest)
        pairs = zip(found, largest, strict=True)
        return tuple(most - round(self.weakening * (most - rank)) for rank, most in pairs)


def rank_rule(ranks: int | float | str | Sequence[int] | RankRule) -> RankRule:
    """Return the rule a user means.

    Parameters
    ----------
    ranks : int, float, str, sequence of int or RankRule
        A sequence: exactly these ranks. An int: this rank at every position. A float in (0, 1]:
        this fraction of the largest rank, at least 1. "evbmf": the components above the noise;
        "evbmf:0.7": 0.7 of the way down to these from the largest rank. "energy:0.9": the fewest
        that keep this fraction of the squared singular values.

    Raises
    ------
    InvalidArgumentError
        For anything else, with what is possible.

    Examples
    --------
    >>> rank_rule(0.5), rank_rule([4, 8]), rank_rule("energy:0.9")
    (FractionRanks(fraction=0.5), FixedRanks(kept=(4, 8)), EnergyRanks(fraction=0.9))
    """
    if isinstance(ranks, RankRule):
        return ranks
    if isinstance(ranks, str):
        return _named(ranks)
    if isinstance(ranks, Sequence):
        return FixedRanks(tuple(_whole(rank, ranks) for rank in ranks))
    if isinstance(ranks, Real) and not isinstance(ranks, Integral):
        return FractionRanks(float(ranks))
    return FixedRanks(_whole(ranks, ranks))


def _named(name: str) -> RankRule:
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


def _whole(rank: Any, ranks: object) -> int:
    try:
        if isinstance(rank, bool):
            raise TypeError
        return index(rank)
    except TypeError as error:
        raise InvalidArgumentError(
            f"ranks must be an int, a float in (0, 1], a sequence of ints, or one of "
            f"{', '.join(NAMES)}; got {ranks!r}"
        ) from error


def _from_spectra(
    rank_of: Callable[[SingularValues, int, int], int],
    spectra: Sequence[Spectrum],
    largest: Sequence[int],
) -> tuple[int, ...]:
    """Return the rank of each spectrum, the largest over its groups, from 1 to the largest."""
    if largest and not spectra:
        raise InvalidArgumentError(
            "this rank rule needs the spectra of a matrix, which this scheme does not have: "
            "give a number or a fraction"
        )
    ranks = []
    for matrix, most in zip(spectra, largest, strict=True):
        groups = matrix.values.reshape(-1, matrix.values.shape[-1]).cpu()
        needed = max(rank_of(values, matrix.rows, matrix.columns) for values in groups)
        ranks.append(min(max(needed, 1), most))
    return tuple(ranks)
