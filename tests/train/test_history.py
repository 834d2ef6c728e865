import math

import pytest

from tensorpress.errors import CorruptFileError
from tensorpress.train import EpochMetrics, History

EPOCH = EpochMetrics(epoch=2, train_loss=0.25, train_error=7.5, lr=0.01, seconds=1.5)


def test_log_line_with_validation():
    metrics = EPOCH.model_copy(update={"validation_loss": 0.5, "validation_error": 12.345})
    assert str(metrics) == (
        "epoch 2: train loss 0.2500, train error 7.50 %, validation loss 0.5000, "
        "validation error 12.35 %, lr 0.01, 1.5 s"
    )


def test_json_keeps_what_is_not_finite():
    history = History(epochs=[EPOCH.model_copy(update={"validation_loss": math.inf})])
    assert History.from_json(history.to_json()) == history


@pytest.mark.parametrize("text", ["", "{", '{"epochs": [{}]}', '{"epoch": []}'])
def test_text_that_is_not_a_history_is_refused(text):
    with pytest.raises(CorruptFileError, match="not a training history"):
        History.from_json(text)
