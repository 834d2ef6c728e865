"""The content survives JSON and refuses what does not fit."""

import json

import pytest

from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.report import Curve, Histogram, LayerRow, ReportContent


def test_round_trip(lenet, deep):
    for content in (lenet, deep):
        assert ReportContent.from_json(content.to_json()) == content


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"titel": "x"}, "titel"),
        ({"title": None}, "title"),
        ({"layers": [{"name": "conv1"}]}, r"layers\.0"),
    ],
)
def test_json_of_another_form_is_refused(change, where):
    content = json.loads(ReportContent("x").to_json()) | change
    with pytest.raises(CorruptFileError, match=where):
        ReportContent.from_json(json.dumps(content))


def test_text_that_is_not_json_is_refused():
    with pytest.raises(CorruptFileError, match="not the content of a report"):
        ReportContent.from_json("{")


def test_lengths_must_agree():
    with pytest.raises(InvalidArgumentError, match="'conv1'"):
        Histogram("conv1", [0.0, 1.0], before=[1, 2], after=[1])
    with pytest.raises(InvalidArgumentError, match="'train'"):
        Curve("train", [1, 2], [0.5])


def test_ratio_of_a_layer_of_which_nothing_is_stored():
    assert LayerRow("x", "Linear", "svd", (2, 2), (), (), 4, 0).ratio is None
