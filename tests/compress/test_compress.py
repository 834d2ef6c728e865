from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError


class Net(nn.Module):
    """Convolutions whose filters are near a few, as those of trained networks are."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(32))
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x).relu()).mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net()
    for layer in (net.stem, net.body[0]):
        u, s, v = torch.linalg.svd(layer.weight.data.flatten(1), full_matrices=False)
        s = s * torch.logspace(0, -2, len(s))
        layer.weight.data = (10 * u * s @ v).reshape(layer.weight.shape)
    return net.eval()


@pytest.fixture
def data() -> list[Tensor]:
    torch.manual_seed(1)
    return [torch.randn(32, 3, 8, 8) for _ in range(8)]


@pytest.mark.parametrize("budget", ["params=60%", "macs=60%"])
def test_a_budget_of_shapes_is_met(net: Net, data: list[Tensor], budget: str) -> None:
    before = {name: value.clone() for name, value in net.state_dict().items()}
    result = tp.compress(net, budget, data)
    kind = budget.split("=")[0]
    dense, compressed = result.costs[kind]
    assert compressed <= 0.6 * dense
    assert tp.measure(result.model, data[0][:1]).params == result.costs["params"][1]
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    assert result.fidelity is not None
    assert result.fidelity.examples == 51  # a fifth of 256


def test_the_nearest_of_all_trials_is_returned(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=50%", data)
    distances = [t.fidelity.distance for t in result.trials if t.fidelity is not None]
    assert len(distances) > 1
    assert result.fidelity is not None
    assert result.fidelity.distance == min(distances)
    again = tp.fidelity(net, result.model, [torch.cat(data)[205:]])
    assert again.error == pytest.approx(result.fidelity.error, rel=1e-3)


def test_data_helps(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=40%", data, refine=False)
    assert result.before is not None
    assert result.fidelity is not None
    assert result.fidelity.error < result.before.error


def test_the_estimate_stands_beside_the_measured_error(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=70%", data, refine=False)
    [trial] = [t for t in result.trials if t.name == "curvature of the outputs"]
    assert trial.estimate is not None
    assert trial.fidelity is not None
    assert trial.fidelity.error / 4 < trial.estimate < 4 * trial.fidelity.error


def test_bytes_are_those_of_a_file_that_holds_the_model(
    net: Net, data: list[Tensor], tmp_path: Path
) -> None:
    result = tp.compress(net, "bytes=25%", data, out=tmp_path / "net.tpz")
    assert result.file is not None
    size = result.file.stat().st_size
    assert size == result.costs["bytes"][1] <= 0.25 * result.costs["bytes"][0]
    loaded = tp.load(result.file, Net())
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), result.model(data[0]))


def test_bytes_without_a_file(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "bytes=25%", data)
    assert result.file is None
    assert result.costs["bytes"][1] <= 0.25 * result.costs["bytes"][0]


def test_without_data_the_result_says_so(net: Net) -> None:
    result = tp.compress(net, "params=60%", example_inputs=torch.zeros(1, 3, 8, 8))
    assert result.fidelity is None
    assert "give calibration data" in result.verdict
    assert any("no calibration data" in text for text in result.warnings)


def test_an_unusable_model_is_called_so(data: list[Tensor]) -> None:
    torch.manual_seed(0)
    flat = Net().eval()  # random weights: nothing to take away
    result = tp.compress(flat, "params=10%", data, refine=False)
    assert result.fidelity is not None
    assert not result.fidelity.usable
    assert "not usable" in result.verdict or "far" in result.verdict
    assert any("finetune" in text for text in result.advice)
    assert result.verdict in str(result)


def test_a_metric_of_ones_own(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(
        net, "params=60%", data, evaluate=lambda model: model(data[0]).abs().mean().item()
    )
    assert result.metric is not None
    assert result.metric[0] == pytest.approx(float(net(data[0]).detach().abs().mean()))


def test_refinement_is_kept_only_where_it_helps(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=40%", data)
    refined = result.trials[-1]
    assert refined.name.endswith(", refined")
    assert result.fidelity is not None
    others = [t.fidelity.distance for t in result.trials[:-1] if t.fidelity is not None]
    assert result.fidelity.distance <= min(others)


def test_a_budget_that_nothing_meets(net: Net, data: list[Tensor]) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be met"):
        tp.compress(net, "params=1", data)
    with pytest.raises(InvalidArgumentError, match="cannot be met"):
        tp.compress(net, "bytes=3", data)


def test_one_example_is_not_held_out(net: Net) -> None:
    result = tp.compress(net, "params=60%", [torch.randn(1, 3, 8, 8)])
    assert any("one example" in text for text in result.warnings)


@pytest.mark.parametrize("budget", ["", "params", "size=3", "params=120%"])
def test_budgets_that_are_none(net: Net, data: list[Tensor], budget: str) -> None:
    with pytest.raises(InvalidArgumentError, match="budget"):
        tp.compress(net, budget, data)


def test_two_runs_are_the_same(net: Net, data: list[Tensor]) -> None:
    first, second = (tp.compress(net, "params=60%", data) for _ in range(2))
    assert first.plan == second.plan
    with torch.no_grad():
        assert torch.allclose(first.model(data[0]), second.model(data[0]), atol=1e-5)


def test_the_content_is_plain_data(net: Net, data: list[Tensor]) -> None:
    import json

    content = tp.compress(net, "macs=60%", data).to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["layers"]


def test_nothing_is_pressed_where_coding_leaves_outputs_nearly_the_same(
    net: Net, data: list[Tensor]
) -> None:
    assert [trial.name for trial in tp.compress(net, "bytes=50%", data).trials] == ["coding"]
    tight = tp.compress(net, "bytes=8%", data).trials
    assert tight[0].fidelity is None or not tight[0].fidelity.nearly_same
    assert len(tight) > 1


class Recurrent(nn.Module):
    """An LSTM, which calibration does not reach; one matrix is much larger than the others."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.lstm.weight_ih_l0 *= 30

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def test_coding_by_weights_alone_competes() -> None:
    torch.manual_seed(0)
    result = tp.compress(Recurrent().eval(), "bytes=8%", [0.1 * torch.randn(64, 10, 8)])
    fidelities = [x.fidelity for x in result.trials if x.fidelity is not None]
    assert "coding, by weights alone" in [trial.name for trial in result.trials]
    assert result.fidelity is not None
    assert result.fidelity.distance == min(x.distance for x in fidelities)
