import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError, TensorPressError
from tensorpress.measure import runtimes
from tensorpress.measure.model_inputs import ModelInputs
from tensorpress.measure.runtimes import in_runtime
from tensorpress.planning import budget_planner, layer_latency
from tensorpress.planning.budget import Budget, parse_budget
from tensorpress.planning.plan import Plan

pytest.importorskip("onnx")


@pytest.fixture(params=["onnxruntime", "openvino"])
def runtime(request):
    pytest.importorskip(request.param)
    return request.param


class Pair(nn.Module):
    """Takes arguments by name and in a list, one of which changes nothing, and returns two."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x, pair, *, scale):
        return {"a": self.fc(x) * scale, "b": pair[0] + 1}


def test_torch_is_the_model_itself():
    net = nn.Linear(3, 2)
    assert in_runtime(net, torch.ones(1, 3), "torch") is net


@pytest.mark.parametrize("scheme", ["channel_svd", "tucker2", "tt_conv", "tensor_train"])
def test_a_pressed_layer_gives_the_same_outputs(scheme, runtime):
    layer = tp.press_layer(nn.Conv2d(8, 12, 3, padding=1), scheme, 3).eval()
    x = torch.randn(2, 8, 9, 9)
    [outputs] = in_runtime(layer, x, runtime)(x)
    torch.testing.assert_close(torch.from_numpy(outputs), layer(x), rtol=1e-4, atol=1e-5)


def test_arguments_of_any_form(runtime):
    net, x = Pair(), torch.ones(4, 3)
    inputs = ModelInputs((x, [x, 2 * x]), {"scale": torch.tensor(2.0)})
    outputs = inputs.run(in_runtime(net, inputs, runtime))
    expected = inputs.run(net)
    for output, name in zip(outputs, ("a", "b"), strict=True):
        torch.testing.assert_close(torch.from_numpy(output), expected[name])


def test_the_model_is_left_in_its_mode(runtime):
    net = nn.Sequential(nn.Linear(3, 2), nn.Dropout()).train()
    in_runtime(net, torch.ones(1, 3), runtime)
    assert net.training
    assert net[1].training


class Stubborn(nn.Module):
    def forward(self, x):
        return torch.linalg.eigh(x).eigenvalues


def test_what_cannot_be_exported_is_an_error_of_ours(runtime):
    with pytest.raises(InvalidArgumentError, match="Stubborn cannot be exported to ONNX"):
        in_runtime(Stubborn(), torch.eye(3), runtime)


def test_a_missing_package_is_named(monkeypatch, runtime):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(runtimes, "import_module", missing)
    with pytest.raises(
        TensorPressError, match=rf"latency in {runtime} .*tensorpress\[(export|openvino)\]"
    ):
        in_runtime(nn.Linear(3, 2), torch.ones(1, 3), runtime)


@pytest.mark.parametrize("text", ["latency=60%@onnxruntime", "latency=12.5ms@openvino"])
def test_a_budget_names_its_runtime(text):
    assert text.endswith(f"@{parse_budget(text).runtime}")
    assert str(parse_budget(text)) == text
    assert parse_budget("latency=60%@torch") == Budget("latency", 0.6, relative=True)


def test_other_runtimes_and_budgets_are_refused():
    with pytest.raises(InvalidArgumentError, match="onnxruntime"):
        parse_budget("latency=60%@onnx")
    with pytest.raises(InvalidArgumentError, match="only a latency"):
        parse_budget("macs=60%@onnxruntime")


def test_layers_and_models_are_timed_in_the_runtime_of_the_budget(monkeypatch):
    seen = []

    def record(model, inputs, runtime):
        seen.append((type(model).__name__, runtime))
        return model

    for module in (budget_planner, layer_latency):
        monkeypatch.setattr(module, "in_runtime", record)
    monkeypatch.setattr(layer_latency, "REPEATS", 2)
    net = nn.Sequential(nn.Linear(600, 600), nn.ReLU(), nn.Linear(600, 600)).eval()
    plan = tp.plan(
        net, torch.randn(64, 600), scheme="channel_svd", budget="latency=90%@onnxruntime"
    )
    assert {runtime for _, runtime in seen} == {"onnxruntime"}
    assert {"Sequential", "Linear", "PressedLayer"} <= {name for name, _ in seen}
    assert "latency in onnxruntime" in plan.latency.text
    assert Plan.from_dict(plan.to_dict()).latency == plan.latency


def test_nothing_is_printed_where_tracing_fails(capfd, runtime):
    layer = tp.press_layer(nn.Linear(64, 64), "tensor_train", 4).eval()
    in_runtime(layer, torch.ones(1, 3, 64), runtime)
    assert capfd.readouterr().out == ""
