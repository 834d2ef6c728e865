"""Warnings about too few or too similar calibration data for a layer."""

import logging

import torch
from torch import Tensor

from tensorpress.reconstruct.regression import MOST_ROWS

ROWS_A_COLUMN = 4
"""With fewer rows per column, a fit follows the noise of the rows."""

COLUMNS = 256
"""Largest number of columns that are checked for independent variation."""

PART = 0.25
"""Warn if inputs vary in a smaller share of the checked directions."""

FEW_ROWS = (
    "layer %s: each response has %s inputs, and calibration data have %s rows; with fewer than %s "
    "rows the fit follows their noise"
)
"""Arguments: the layer's name, its columns, its rows and the rows needed."""

logger = logging.getLogger("tensorpress.press")


def warn_of_few_rows(name: str, rows: int, columns: int, sample: Tensor) -> None:
    """Warn of too few or too similar rows.

    Parameters
    ----------
    name : str
        Name of the layer.
    rows, columns : int
        The number of input rows, and of numbers in each.
    sample : Tensor
        Second moments between the columns of `sample_columns`, (groups, columns, columns).
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
            "layer %s: calibration data vary in only %d of the %d directions checked; in the "
            "others its response is known from the weight alone",
            *(name, directions, most),
        )


def count_directions(second: Tensor) -> int:
    """Return the number of directions in which inputs vary, the largest of all groups.

    Examples
    --------
    >>> count_directions(torch.diag(torch.tensor([2.0, 1.0, 1e-9])).expand(2, 3, 3))
    2
    """
    values = torch.linalg.eigvalsh(second.double())
    least = values.sum(-1, keepdim=True).clamp_min(0) / MOST_ROWS  # the size of rounding errors
    return int((values > least).sum(-1).max())


def sample_columns(columns: int) -> Tensor:
    """Return the columns to check, evenly spaced.

    Examples
    --------
    >>> sample_columns(3).tolist(), len(sample_columns(5000))
    ([0, 1, 2], 256)
    """
    return torch.linspace(0, columns - 1, min(columns, COLUMNS)).round().long()


def column_moments(inputs: Tensor) -> Tensor:
    """Return second moments of inputs (rows, groups, columns) between the sampled columns."""
    columns = sample_columns(inputs.shape[-1]).to(inputs.device)
    x = inputs[..., columns].movedim(0, 1).double()  # (groups, rows, columns)
    return x.mT @ x / len(inputs)
