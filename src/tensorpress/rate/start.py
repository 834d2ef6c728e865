"""Starting from a model that was rounded by calibration."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from tensorpress.calibrate.batches import Given
from tensorpress.codec.reading import open_file
from tensorpress.codec.steps import StepQuantizer
from tensorpress.rounding.encode import encode


def round_by_calibration(model: nn.Module, batches: Iterable[Given], size: int) -> dict[str, float]:
    """Round a model in place to a file of a size, without training.

    What training for size starts from where there are trained weights: the steps that data ask
    for, and values that make up for each other's rounding errors.

    Parameters
    ----------
    model : nn.Module
        Trained, dense or pressed.
    batches : iterable
        As for `tensorpress.encode`.
    size : int
        Bytes of the file.

    Returns
    -------
    dict
        The step of every tensor that was rounded, by name: the weights, and finer ones of vectors.

    Raises
    ------
    InvalidArgumentError
        As `tensorpress.encode` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.tpz")
        encode(model, path, size=size, calibration=batches)
        opened = open_file(path)
        entries, stored = opened.description.tensors, opened.tensors()
    found = {entry.name: one for entry, one in zip(entries, stored, strict=True)}
    # A parameter that several layers hold is in the file once, and is one here.
    model.load_state_dict({name: one.values for name, one in found.items()}, strict=False)
    return {
        name: one.storage.step
        for name, one in found.items()
        if isinstance(one.storage, StepQuantizer)
    }
