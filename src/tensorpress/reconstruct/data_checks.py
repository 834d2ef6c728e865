"""Whether calibration data say enough about a layer to fit it to them."""

import logging

import torch
from torch import Tensor

from tensorpress.reconstruct.regression import MOST_ROWS

ROWS_A_COLUMN = 4
"""With fewer rows a fit is mostly one to the rows' noise."""

COLUMNS = 256
"""Of so many columns at most it is looked whether they vary independently."""

PART = 0.25
"""In fewer directions than this part of all a layer's inputs hardly ever vary by themselves."""

FEW_ROWS = (
    "layer %s has %s inputs a response, and calibration data show %s: at least %s are needed, or "
    "it is fitted to their noise"
)
"""The warning of too few rows, of a layer's name, its columns, its rows and those needed."""

logger = logging.getLogger("tensorpress.press")


def warn_of_few_rows(name: str, rows: int, columns: int, sample: Tensor) -> None:
    """Warn, with numbers, of too few rows, or of rows that are too much alike.

    Parameters
    ----------
    name : str
        Of the layer.
    rows, columns : int
        How many inputs were seen, and of how many numbers.
    sample : Tensor
        Their second moments between the columns of `sample_columns`, (groups, columns, columns).
    """
    if rows < ROWS_A_COLUMN * columns:
        logger.warning(
            FEW_ROWS,
            *(name, f"{columns:,}", f"{rows:,}", f"{ROWS_A_COLUMN * columns:,}"),
        )
        return
    directions, most = count_directions(sample), sample.shape[-1]
    if directions < PART * most:
        logger.warning(
            "layer %s: calibration data vary in %d directions of %d inputs looked at: what it "
            "does in others is known by its weights only",
            *(name, directions, most),
        )


def count_directions(second: Tensor) -> int:
    """Return in how many directions inputs with these moments vary, in the group of most.

    Examples
    --------
    >>> count_directions(torch.diag(torch.tensor([2.0, 1.0, 1e-9])).expand(2, 3, 3))
    2
    """
    values = torch.linalg.eigvalsh(second.double())
    least = values.sum(-1, keepdim=True).clamp_min(0) / MOST_ROWS  # what rounding leaves
    return int((values > least).sum(-1).max())


def sample_columns(columns: int) -> Tensor:
    """Return the columns that are looked at, evenly spaced.

    Examples
    --------
    >>> sample_columns(3).tolist(), len(sample_columns(5000))
    ([0, 1, 2], 256)
    """
    return torch.linspace(0, columns - 1, min(columns, COLUMNS)).round().long()


def column_moments(inputs: Tensor) -> Tensor:
    """Return the second moments between some columns of inputs (rows, groups, columns)."""
    columns = sample_columns(inputs.shape[-1]).to(inputs.device)
    x = inputs[..., columns].movedim(0, 1).double()  # (groups, rows, columns)
    return x.mT @ x / len(inputs)
