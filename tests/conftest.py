import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets and trained weights."""
    root = os.environ.get("TENSORPRESS_DATA")
    if not root:
        pytest.skip("needs real data: set TENSORPRESS_DATA to the folder that holds it")
    return Path(root)
