"""Tables in the terminal."""

import io

import pytest
from rich.console import Console

from tensorpress.report import LayerRow, headline_table, layer_table


def text_of(table, width):
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
@pytest.mark.parametrize("content", ["lenet", "deep"])
def test_tables_fit_and_numbers_are_whole(content, width, request):
    rows = request.getfixturevalue(content).layers
    text = text_of(layer_table(rows), width)
    assert max(map(len, text.splitlines())) <= width
    for row in rows:
        assert f"{row.dense_params:,}" in text
    assert f"{sum(row.dense_params for row in rows):,}" in text


def test_headline_names_both_ratios(lenet):
    text = text_of(headline_table(lenet.metrics), 80)
    assert "parameter ratio" in text
    assert "file ratio" in text
    assert "2,104" in text


def test_notes_are_remarks_below_the_table():
    row = LayerRow("conv1", "Conv2d", "dense", (8, 3, 3, 3), (), (), 216, 216, note="too small")
    text = text_of(layer_table([row, row]), 80)
    assert text.count("too small") == 1
    assert text.count("conv1¹") == 2


def test_names_are_not_markup():
    row = LayerRow("[red]x[/red]", "Linear", "svd", (2, 2), (2, 2), (1,), 4, 4)
    assert "[red]x[/red]" in text_of(layer_table([row]), 80)


def test_a_table_without_layers_is_rendered():
    assert "layer" in text_of(layer_table([]), 80)


def test_the_error_before_training_is_shown_where_weights_were_decomposed(lenet):
    pressed = lenet.metrics["pressed"]
    for start, shown in ((61.25, True), (None, False)):
        metrics = lenet.metrics | {"pressed": pressed | {"start_error": start}}
        text = text_of(headline_table(metrics), 80)
        assert ("before fine-tuning" in text) == ("61.25" in text) == shown
