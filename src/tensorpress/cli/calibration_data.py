"""The data of a command, as batches for its model."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from tensorpress.cli.classification import classification_error, is_classified
from tensorpress.cli.model_source import DenseByName, LoadedModel
from tensorpress.data import DATASETS, ModelBatches, Source, model_batches, open_source
from tensorpress.data.source import Batches, Part
from tensorpress.data.sources import find_path
from tensorpress.data.splits import check_fit
from tensorpress.data.transforms import ImageOptions
from tensorpress.errors import DataNotFoundError
from tensorpress.models.origin import Origin
from tensorpress.models.zoo import NETWORKS

logger = logging.getLogger("tensorpress.cli")

ENCODE_SAMPLE, FIT_SAMPLE, STREAM_SAMPLE = 512, 1024, 32
"""Number of examples for encoding, for fitting layers, and for fitting the layers of a checkpoint,
where examples are long."""

TEST_SAMPLE = 10_000
"""Largest number of examples on which a model is tested before and after compression."""


@dataclass(frozen=True)
class CommandData:
    """The data of the option ``--data``.

    Parameters
    ----------
    source : Source
        The data.
    loaded : LoadedModel
        The model for the data.
    options : ImageOptions or None
        Preprocessing of images, if the model does not define it.
    """

    source: Source
    loaded: LoadedModel
    options: ImageOptions | None

    @staticmethod
    def open(
        loaded: LoadedModel, data: str, root: Path | None, preprocess: str | None
    ) -> CommandData:
        """Open the data for a model.

        Parameters
        ----------
        loaded : LoadedModel
            The model.
        data : str
            The name, path or function, as in `tensorpress.data.open_source`.
        root : Path or None
            The folder of all datasets.
        preprocess : str or None
            The option ``--preprocess``.

        Raises
        ------
        TensorPressError
            If the data cannot be read or do not fit the model, or the option is invalid.
        """
        options = loaded.images if preprocess is None else ImageOptions.parse(preprocess)
        net = NETWORKS.get(loaded.name or "")
        if net is not None and data in DATASETS:
            check_fit(net, data)
        return CommandData(open_source(data, root), loaded, options)

    @staticmethod
    def for_dense(
        dense: DenseByName, data: str, root: Path | None, preprocess: str | None
    ) -> CommandData:
        """Open the data for a dense model; see `open`."""
        open_source(data, root)  # so that a wrong name is found before the model is loaded
        return CommandData.open(dense.loaded, data, root, preprocess)

    def sample(self, count: int = FIT_SAMPLE) -> Any:
        """Return batches to fit layers to; a fifth of data without parts is for tests."""
        whole = self.source.train is None and isinstance(self.source.test, Batches)
        return self._batches(self.source.test if whole else self._parts[0], count).batches

    def held_out(self) -> Any:
        """Return batches that nothing is fitted to, if the data can be divided."""
        whole = self.source.train is None and isinstance(self.source.test, Batches)
        return self._batches(self.source.test if whole else self._parts[1], FIT_SAMPLE).batches

    def test(self) -> ModelBatches:
        """Return batches of the whole test part, or of all examples if there are no parts."""
        return self._batches(self.source.test, None)

    def error_function(self) -> Callable[[nn.Module], float] | None:
        """Return a function for the error of a model in percent, on data that nothing is fitted to.

        None if the data cannot be divided or have no labels, or the model is not a classifier.
        """
        if self.source.train is None and isinstance(self.source.test, Batches):
            return None
        data = self._batches(self._parts[1], TEST_SAMPLE)
        if not is_classified(self.loaded.model, data.batches):
            return None
        return lambda model: classification_error(model, data.batches).error

    @cached_property
    def _parts(self) -> tuple[Part, Part]:
        return self.source.divide()

    def _batches(self, part: Part, sample: int | None) -> ModelBatches:
        return model_batches(
            self.source,
            part,
            self.loaded.model,
            self.loaded.name,
            options=self.options,
            sample=sample,
        )


def known_data(origin: Origin, root: Path | None) -> str | None:
    """Return the data that a file or folder names, if they exist here; never a function."""
    name = origin.data
    if name is None or not (name in DATASETS or find_path(name, root) is not None):
        return None
    try:
        open_source(name, root)
    except DataNotFoundError as error:  # of a dataset that has not been downloaded
        logger.warning("the model's data %s are not used: %s", name, error)
        return None
    return name
