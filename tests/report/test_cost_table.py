import io

import pytest
from rich.console import Console
from rich.table import Table

from tensorpress.report.cost_table import (
    Cost,
    ModelRow,
    PlanRow,
    cost_table,
    model_table,
    plan_table,
)

NAME = "model.layers.11.self_attn.compression.down_proj"


def text_of(table: Table, width: int) -> str:
    file = io.StringIO()
    Console(file=file, width=width).print(table)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 160])
def test_all_of_a_plan_is_readable_at_any_width(width: int) -> None:
    row = PlanRow(
        *(NAME, "channel_svd", (1024, 2816), (), (512,), 2_883_584, 1_966_080),
        *(92_274_688, 62_914_560, 0.31),
    )
    text = text_of(plan_table([row, row]), width)
    assert max(map(len, text.splitlines())) <= width
    for cell in ("channel_svd", "1024×2816", "512", "1.97M  68 %", "62.9M  68 %", "0.310"):
        assert text.count(cell) == 2
    letters = "".join(line.split()[0] for line in text.splitlines()[3:5])
    assert NAME.startswith(letters[:20])


def test_empty_columns_are_left_out() -> None:
    plain = PlanRow("fc", "channel_svd", (20, 30), (), (4,), 600, 200)
    reshaped = PlanRow("fc", "ada_tucker", (20, 30), (5, 4, 30), (2, 2, 2), 600, 86)
    assert not {"modes", "MACs", "error"} & set(text_of(plan_table([plain]), 80).split())
    assert "5×4×30" in text_of(plan_table([plain, reshaped]), 80)
    assert "MACs" not in text_of(model_table([ModelRow("fc", "Linear", (20, 30), 600)]), 80)


def test_unknown_values_are_dashes() -> None:
    known = PlanRow("a", "channel_svd", (20, 30), (), (4,), 600, 200, 600, 200)
    unknown = PlanRow("b", "channel_svd", (20, 30), (), (4,), 600, 200)
    [line] = [
        line for line in text_of(plan_table([known, unknown]), 80).splitlines() if "b " in line
    ]
    assert line.split()[-1] == "–"
    assert "–" in text_of(cost_table([Cost("macs", None, None)]), 80)


def test_reasons_are_remarks_below_a_model() -> None:
    rows = [ModelRow(name, "Linear", (2, 3), 6, note="it is tied") for name in "ab"]
    text = text_of(model_table(rows), 80)
    assert text.count("it is tied") == 1
    assert "a¹" in text
    assert "b¹" in text


def test_ratios_are_dense_over_pressed() -> None:
    text = text_of(cost_table([Cost("params", 3000, 1000), Cost("latency_ms", 5.0, 10.0)]), 80)
    assert "3.00×" in text
    assert "0.50×" in text
    assert "5.00" in text
