"""Chooses ranks: from spectra by a rule, or from options within a budget."""

from tensorpress.ranks.allocation import Allocation, Option, allocate, pareto
from tensorpress.ranks.checks import check_ranks, round_ranks
from tensorpress.ranks.energy import energy_rank
from tensorpress.ranks.evbmf import EVBMF, evbmf
from tensorpress.ranks.rules import (
    EnergyRanks,
    EVBMFRanks,
    FixedRanks,
    FractionRanks,
    RankRule,
    parse_rank_rule,
)

__all__ = [
    "EVBMF",
    "Allocation",
    "EVBMFRanks",
    "EnergyRanks",
    "FixedRanks",
    "FractionRanks",
    "Option",
    "RankRule",
    "allocate",
    "check_ranks",
    "energy_rank",
    "evbmf",
    "pareto",
    "parse_rank_rule",
    "round_ranks",
]
