"""Variants of one recipe, run side by side and compared by bytes and error of their files."""

from tensorpress.sweep.picks import Pick
from tensorpress.sweep.sweep import sweep
from tensorpress.sweep.variants import SweepFile, Variant, read_sweep

__all__ = ["Pick", "SweepFile", "Variant", "read_sweep", "sweep"]
