"""Reports of pressed models: the numbers of the layers, and what cannot be reported."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.compress.model_report import describe
from tensorpress.errors import InvalidArgumentError, ModelMismatchError


class Classifier(nn.Module):
    """A convolution, an LSTM over its rows, and a Linear."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 8, 3, padding=1)
        self.lstm = nn.LSTM(64, 20, batch_first=True)
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.conv(x).permute(0, 2, 1, 3).flatten(2)
        return self.head(self.lstm(rows)[0][:, -1])


@pytest.fixture
def dense() -> nn.Module:
    torch.manual_seed(0)
    return Classifier()


def press(dense: nn.Module) -> nn.Module:
    plan = tp.plan(
        dense,
        overrides={
            "conv": {"scheme": "tucker2", "ranks": [1, 4]},
            "lstm.weight_hh_l0": {"scheme": "svd_weight", "ranks": 5},
            "head": {"scheme": "channel_svd", "ranks": 3},
        },
        targets=["conv", "lstm.weight_hh_l0", "head"],
        scheme="channel_svd",
        ranks=3,
    )
    return tp.press(dense, plan)


def test_layers_have_the_errors_costs_and_curves_of_the_model(dense: nn.Module) -> None:
    content = tp.report(dense, press(dense), batches=[torch.randn(60, 1, 8, 8)])
    layers = {layer["name"]: layer for layer in content["layers"]}
    assert list(layers) == ["conv", "lstm.weight_hh_l0", "head"]
    head = layers["head"]
    weight = dense.get_parameter("head.weight").detach().double()
    values = torch.linalg.svdvals(weight)
    expected = float(values[3:].norm() / values.norm())
    assert head["error"] == pytest.approx(expected, rel=1e-4)
    [curve] = head["curves"]
    assert curve["errors"][curve["ranks"].index(3)] == pytest.approx(expected, abs=1e-4)
    assert (head["dense_macs"], head["macs"]) == (200, 90)
    assert len(layers["conv"]["curves"]) == 2
    assert layers["lstm.weight_hh_l0"]["dense_macs"] is None
    assert all(layer["ms"] > 0 and layer["dense_ms"] > 0 for layer in layers.values())
    assert (
        content["unpressed"]["lstm.weight_ih_l0"]
        == "it could be pressed, but the plan leaves it dense"
    )
    assert content["fidelity"]["examples"] == 60
    low, high = content["costs"]["latency_ms"]["quartiles"]["dense"]
    assert 0 < low <= content["costs"]["latency_ms"]["dense"] <= high


def test_the_page_is_written_and_without_batches_says_so(dense: nn.Module, tmp_path: Path) -> None:
    content = tp.report(dense, press(dense), tmp_path / "page.html", title="my <net>")
    assert "latency_ms" not in content["costs"]
    page = (tmp_path / "page.html").read_text()
    assert "<h1>my &lt;net&gt;</h1>" in page
    assert "outputs were not compared: no data were given" in page


def test_a_file_reports_like_the_model_it_holds(dense: nn.Module, tmp_path: Path) -> None:
    pressed = press(dense)
    tp.encode(pressed, tmp_path / "net.tpz", bits=8)
    loaded = tp.load(tmp_path / "net.tpz", Classifier())
    names = [
        [layer["name"] for layer in describe(dense, model)["layers"]] for model in (pressed, loaded)
    ]
    assert names[0] == names[1]


def test_models_that_are_not_pressed_or_not_of_this_kind(dense: nn.Module) -> None:
    assert tp.report(dense, dense)["layers"] == []
    other = nn.Module()
    other.conv = nn.Conv2d(1, 8, 5)
    with pytest.raises(ModelMismatchError, match=r"'conv' .* \(8, 1, 3, 3\), .* \(8, 1, 5, 5\)"):
        describe(other, press(dense))


@pytest.mark.parametrize("scheme", ["ada_tucker", "svd_weight", "tt_weight", "cp", "tensor_train"])
def test_convolutions_of_every_form_are_reported(scheme: str) -> None:
    net = nn.Sequential(nn.Conv2d(4, 32, 3), nn.ReLU(), nn.Conv2d(32, 16, 3))
    pressed = tp.press(net, tp.plan(net, scheme=scheme, budget="params=60%"))
    content = tp.report(net, pressed, batches=[torch.randn(40, 4, 9, 9)])
    for layer in content["layers"]:
        assert 0 < layer["error"] < 1
        assert layer["ms"] > 0


def test_weights_without_values_name_the_layer(dense: nn.Module) -> None:
    with pytest.raises(InvalidArgumentError, match="layer 'conv': its weight is on the meta"):
        describe(Classifier().to("meta"), press(dense))


def test_the_path_is_checked_before_the_work(dense: nn.Module, tmp_path: Path) -> None:
    def batches() -> Iterator[Tensor]:
        raise AssertionError("the work has begun")
        yield

    (tmp_path / "page.html").mkdir()
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tp.report(dense, press(dense), tmp_path / "page.html", batches=batches())
