"""Sweeps: variants of a recipe, compared by the size and error of their files."""

from tensorpress.sweep.picks import Pick
from tensorpress.sweep.sweep import sweep
from tensorpress.sweep.variants import SweepFile, Variant, read_sweep

__all__ = ["Pick", "SweepFile", "Variant", "read_sweep", "sweep"]
