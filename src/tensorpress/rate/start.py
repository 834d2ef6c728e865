"""Starting from a model that was rounded by calibration."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from torch import nn

from tensorpress.calibrate.batches import Given
from tensorpress.codec.state import load_tensors
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
        The step of every weight, by name.

    Raises
    ------
    InvalidArgumentError
        As `tensorpress.encode` does.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "start.tpz")
        done = encode(model, path, size=size, calibration=batches)
        # A parameter that several layers hold is in the file once, and is one here.
        model.load_state_dict(load_tensors(path), strict=False)
    return {tensor.name: tensor.step for tensor in done.tensors}
