"""Libraries of models, where they are installed."""

import pytest

from tensorpress.models.torchvision import mend_torchvision


def needed(package: str) -> None:
    """Skip the test without the package."""
    mend_torchvision()  # which others import where it is installed
    pytest.importorskip(package)
