import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tensorpress.utils.progress import SHOW_PROGRESS

# Not to be searched for doctests: several modules of one name cannot be imported.
collect_ignore_glob = ["conftest.py", "*/conftest.py"]

# Shared machines stall: how long an example took says nothing about the code.
# The same examples every time, so that a change passes or fails for what it is.
settings.register_profile("tensorpress", deadline=None, derandomize=True)
settings.load_profile("tensorpress")


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets and trained weights."""
    root = os.environ.get("TENSORPRESS_DATA")
    if not root:
        pytest.skip("needs real data: set TENSORPRESS_DATA to the folder that holds it")
    return Path(root)


@pytest.fixture(autouse=True)
def same_random_numbers() -> None:
    """Let a test draw the same weights in every run, whatever ran before it."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def verbosity_as_before() -> Iterator[None]:
    """Undo what a command that ran in this process decided about progress and log lines."""
    logger = logging.getLogger("tensorpress")
    level, before = logger.level, os.environ.get(SHOW_PROGRESS)
    yield
    logger.setLevel(level)
    if before is None:
        os.environ.pop(SHOW_PROGRESS, None)
    else:
        os.environ[SHOW_PROGRESS] = before
