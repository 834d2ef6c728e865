"""Collects the warnings about too little data of all layers and trials into one."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from tensorpress.reconstruct.data_checks import FEW_ROWS, ROWS_A_COLUMN

_MOST_NAMES = 3


class FewRows(logging.Filter):
    """Collects warnings about layers with too few inputs instead of passing them on."""

    def __init__(self) -> None:
        super().__init__()
        self._shares: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return False for the collected warnings."""
        if record.msg != FEW_ROWS or not isinstance(record.args, tuple):
            return True
        name, columns, rows, _ = map(str, record.args)
        self._shares[name] = int(rows.replace(",", "")) / int(columns.replace(",", ""))
        return False

    @property
    def warning(self) -> str | None:
        """One line about all layers; it names the worst."""
        if not self._shares:
            return None
        worst = sorted(self._shares, key=lambda name: self._shares[name])
        names = ", ".join(worst[:_MOST_NAMES]) + (", …" if len(worst) > _MOST_NAMES else "")
        count = "1 layer has" if len(worst) == 1 else f"{len(worst)} layers have"
        return (
            f"{count} too little calibration data and may be fitted to noise ({names}): give more, "
            f"at least {ROWS_A_COLUMN} rows for each input feature of a layer"
        )


@contextmanager
def collect_few_rows() -> Iterator[FewRows]:
    """Collect warnings about layers with too few inputs during a ``with`` block."""
    few, logger = FewRows(), logging.getLogger("tensorpress.press")
    logger.addFilter(few)
    try:
        yield few
    finally:
        logger.removeFilter(few)
