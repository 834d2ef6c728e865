"""Encodes trained models within a budget, and trains models for size."""

from tensorpress.quantize.noisy_model import RateModel
from tensorpress.quantize.train_for_size import train_for_size

__all__ = ["RateModel", "train_for_size"]
