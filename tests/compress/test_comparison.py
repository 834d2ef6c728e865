from pathlib import Path

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 20), nn.ReLU(), nn.Linear(20, 10)).eval()


def press(dense: nn.Module, rank: int) -> nn.Module:
    return tp.press(dense, tp.plan(dense, scheme="channel_svd", ranks=rank))


def test_models_are_measured_side_by_side(dense: nn.Module, tmp_path: Path) -> None:
    batches = [(torch.randn(200, 30), torch.arange(200) % 10)]
    models = {"<one>": press(dense, 1), "six": press(dense, 6)}
    page = tmp_path / "page.html"
    content = tp.compare(
        dense,
        models,
        page,
        batches=batches,
        evaluate=lambda m: tp.fidelity(dense, m, batches).error,
    )
    rows = {row["name"]: row for row in content["models"]}
    assert list(rows) == ["dense", "<one>", "six"]
    for name, model in models.items():
        fidelity = tp.fidelity(dense, model, batches)
        assert rows[name]["fidelity"] == fidelity.to_dict()
        assert rows[name]["metric"] == pytest.approx(fidelity.error)
        assert rows[name]["params"] == sum(p.numel() for p in model.parameters())
    assert rows["dense"]["metric"] == 0
    assert rows["dense"]["macs"] == 800
    assert all(row["latency_ms"] > 0 for row in rows.values())
    text = page.read_text()
    assert "&lt;one&gt;" in text
    assert "<one>" not in text
    assert f"{100 * rows['six']['fidelity']['error']:.1f} %" in text


def test_each_model_has_its_dense_model(dense: nn.Module) -> None:
    other = nn.Sequential(nn.Linear(30, 25), nn.ReLU(), nn.Linear(25, 10))
    models = {"a": press(dense, 9), "b": press(other, 9)}
    origins = {"a": dense, "b": other}
    x = torch.randn(200, 30)
    content = tp.compare(origins, models, batches=[x])
    assert [row["name"] for row in content["models"]] == ["dense of a", "dense of b", "a", "b"]
    errors = {row["name"]: row["fidelity"]["error"] for row in content["models"][2:]}
    assert errors["b"] == pytest.approx(tp.fidelity(other, models["b"], [x]).error)
    with pytest.raises(InvalidArgumentError, match="there is no dense model for 'b'"):
        tp.compare({"a": dense}, models)
    with pytest.raises(InvalidArgumentError, match="no models to compare"):
        tp.compare(dense, {})
