import pytest
from tiny_models import Batches, Digits, digits, trained


@pytest.fixture(scope="session")
def net() -> Digits:
    return trained()


@pytest.fixture(scope="session")
def batches() -> Batches:
    return digits()
