"""Data sets of the published tables from their official files, generated clips, and batches."""

from tensorpress.data.augment import AUGMENTATIONS, MIXED
from tensorpress.data.images import ImageSet, Splits
from tensorpress.data.loaders import BatchLoader, batches
from tensorpress.data.registry import DATASETS, ROOT_VARIABLE, DataSet, load

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "MIXED",
    "ROOT_VARIABLE",
    "BatchLoader",
    "DataSet",
    "ImageSet",
    "Splits",
    "batches",
    "load",
]
