"""Data from datasets, folders, files and functions, as batches for a model."""

from tensorpress.data.augment import AUGMENTATIONS, MIXED
from tensorpress.data.images import ImageSet, Splits
from tensorpress.data.loaders import BatchLoader, batches
from tensorpress.data.model_batches import ModelBatches, model_batches
from tensorpress.data.registry import DATASETS, ROOT_VARIABLE, DataSet, load
from tensorpress.data.source import Source
from tensorpress.data.sources import open_source
from tensorpress.data.transforms import ImageOptions

__all__ = [
    "AUGMENTATIONS",
    "DATASETS",
    "MIXED",
    "ROOT_VARIABLE",
    "BatchLoader",
    "DataSet",
    "ImageOptions",
    "ImageSet",
    "ModelBatches",
    "Source",
    "Splits",
    "batches",
    "load",
    "model_batches",
    "open_source",
]
