"""Training for the sum of loss and coded bits."""

from tensorpress.rate.model import RateModel
from tensorpress.rate.training import train_for_size

__all__ = ["RateModel", "train_for_size"]
