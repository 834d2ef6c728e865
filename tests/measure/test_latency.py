import time

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.measure import latencies, measure


class Recorder(nn.Module):
    """A model that takes its time and notes when it ran, and how."""

    def __init__(self, name: str, calls: list[str], seconds: float = 0.0) -> None:
        super().__init__()
        self.name, self.calls, self.seconds = name, calls, seconds

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        self.calls.append(self.name)
        time.sleep(self.seconds)
        return x


def test_models_take_turns() -> None:
    calls: list[str] = []
    models = [Recorder(name, calls) for name in "abc"]
    assert len(latencies(models, [torch.zeros(1)], repeats=4)) == 3
    assert calls == list("abc") * 6
    assert all(model.training for model in models)


def test_times_are_in_milliseconds() -> None:
    slow, fast = latencies(
        [Recorder("slow", [], 0.004), Recorder("fast", [])], [torch.zeros(1)], repeats=5
    )
    assert 4 <= slow < 40
    assert 0 < fast < 4


def test_one_model_twice() -> None:
    model = Recorder("a", [])
    assert len(latencies([model, model], [torch.zeros(1)], repeats=2)) == 2
    assert model.training


def test_a_failing_model_gets_its_mode_back() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        latencies([model], [torch.zeros(1, 4)])
    assert model.training


def test_all_at_once() -> None:
    model = nn.Linear(30, 10)
    found = measure(model, torch.zeros(5, 30))
    assert (found.params, found.macs) == (310, 300)
    assert found.latency_ms > 0
    assert measure(model, [torch.zeros(5, 30)]).macs == 300
    assert found.to_dict() == {"params": 310, "macs": 300, "latency_ms": found.latency_ms}
    assert tp.measure is measure
