"""Compresses a model to a budget by one call."""

from tensorpress.compress.compress import compress
from tensorpress.compress.fidelity import fidelity
from tensorpress.compress.result import CompressResult, Trial
from tensorpress.compress.verdict import Fidelity

__all__ = ["CompressResult", "Fidelity", "Trial", "compress", "fidelity"]
