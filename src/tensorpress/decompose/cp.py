"""Canonical polyadic (CP) decompositions: the form, and the algorithms that find it."""

from tensorpress.decompose.cp_als import cp_als
from tensorpress.decompose.cp_correction import cp_correct
from tensorpress.decompose.cp_nls import cp_nls
from tensorpress.decompose.cp_tensor import CP, cp_sensitivity, cp_to_tensor, max_cp_rank

__all__ = ["CP", "cp_als", "cp_correct", "cp_nls", "cp_sensitivity", "cp_to_tensor", "max_cp_rank"]
