"""How many components to keep: spectra and limits in, ranks out."""

from tensorpress.ranks.energy import energy_rank
from tensorpress.ranks.evbmf import EVBMF, evbmf
from tensorpress.ranks.limits import check_ranks
from tensorpress.ranks.rules import (
    EnergyRanks,
    EVBMFRanks,
    FixedRanks,
    FractionRanks,
    RankRule,
    rank_rule,
)

__all__ = [
    "EVBMF",
    "EVBMFRanks",
    "EnergyRanks",
    "FixedRanks",
    "FractionRanks",
    "RankRule",
    "check_ranks",
    "energy_rank",
    "evbmf",
    "rank_rule",
]
