"""Compression of a model within a budget by one call."""

from tensorpress.compress.compress import compress
from tensorpress.compress.fidelity import Fidelity, fidelity
from tensorpress.compress.result import CompressResult, Trial

__all__ = ["CompressResult", "Fidelity", "Trial", "compress", "fidelity"]
