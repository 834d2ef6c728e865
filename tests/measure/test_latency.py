import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.measure import latency, measure, measure_latencies
from tensorpress.measure.latency import time_passes


class Clock:
    """A clock that only models move."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Recorder(nn.Module):
    """A model that takes its time and notes when it ran, and how."""

    def __init__(self, name: str, calls: list[str], clock: Clock, *seconds: float) -> None:
        super().__init__()
        self.name, self.calls, self.clock, self.seconds = name, calls, clock, seconds

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        assert torch.is_inference_mode_enabled()
        ran = self.calls.count(self.name)
        self.calls.append(self.name)
        self.clock.now += self.seconds[ran % len(self.seconds)]
        return x


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(latency, "perf_counter", clock)
    monkeypatch.setitem(time_passes.__kwdefaults__, "clock", clock)
    return clock


X = [torch.zeros(1)]


def test_models_take_turns_in_both_directions(clock: Clock) -> None:
    calls: list[str] = []
    models = [Recorder(name, calls, clock, 1.0) for name in "abc"]
    assert len(measure_latencies(models, X, repeats=4)) == 3
    assert "".join(calls) == "abccba" * 3
    assert all(model.training for model in models)


def test_times_are_in_milliseconds_and_the_first_two_do_not_count(clock: Clock) -> None:
    calls: list[str] = []
    models = [
        Recorder("a", calls, clock, 9, 8, 0.001, 0.002, 0.003),
        Recorder("b", calls, clock, 7, 6, 0.005, 0.004, 0.002),
    ]
    times = time_passes(models, X, repeats=3)
    assert [pytest.approx(taken) for taken in times] == [[1, 2, 3], [5, 4, 2]]


def test_a_median_is_not_moved_by_one_slow_pass(clock: Clock) -> None:
    model = Recorder("a", [], clock, 0, 0, 0.003, 60, 0.004, 0.005, 0.003)
    assert measure_latencies([model], X, repeats=5) == [pytest.approx(4)]


@pytest.mark.parametrize(
    ("seconds", "rounds"), [(0.0, 3), (4.5, 3), (6.5, 5), (8.5, 7), (100.0, 10)]
)
def test_slow_models_run_less_often(clock: Clock, seconds: float, rounds: int) -> None:
    model = Recorder("a", [], clock, 1.0)
    [times] = time_passes([model], X, repeats=10, least=3, seconds=seconds)
    assert len(times) == rounds


@pytest.mark.parametrize(
    ("wobble", "precision", "rounds"),
    [(0.0, 0.01, 5), (0.2, 0.01, 40), (0.2, 0.02, 22), (0.2, 0.0, 40)],
)
def test_unsteady_models_run_more_often(
    clock: Clock, wobble: float, precision: float, rounds: int
) -> None:
    calls: list[str] = []
    steady = Recorder("a", calls, clock, 1.0)
    other = Recorder("b", calls, clock, *(2 + wobble * k for k in (-1, -0.5, 0, 0.5, 1)))
    for models in ([steady, other], [other, steady]):
        calls.clear()
        times = time_passes(models, X, repeats=40, precision=precision)
        assert len(times[0]) == len(times[1])
        assert len(times[0]) == pytest.approx(rounds, abs=3)


def test_a_machine_that_slows_all_models_alike_is_steady(clock: Clock) -> None:
    calls: list[str] = []
    models = [
        Recorder(n, calls, clock, *(s * f for f in range(1, 43))) for n, s in (("a", 1), ("b", 2))
    ]
    assert len(time_passes(models, X, repeats=40, precision=0.001)[0]) == 5


def test_another_clock_tells_the_times_and_not_when_to_stop(clock: Clock) -> None:
    model = Recorder("a", [], clock, 1.0)
    [times] = time_passes([model], X, repeats=9, least=2, seconds=4.5, clock=lambda: clock.now / 10)
    assert times == [pytest.approx(100)] * 3


def test_one_model_alone_is_compared_with_nothing(clock: Clock) -> None:
    assert len(time_passes([Recorder("a", [], clock, 1)], X, repeats=8, precision=0.5)[0]) == 8


def test_one_model_twice() -> None:
    model = nn.Linear(1, 1)
    assert len(measure_latencies([model, model], X, repeats=2)) == 2
    assert model.training


def test_a_failing_model_gets_its_mode_back() -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(RuntimeError):
        measure_latencies([model], [torch.zeros(1, 4)])
    assert model.training


def test_all_at_once() -> None:
    model = nn.Linear(30, 10)
    result = measure(model, torch.zeros(5, 30))
    assert (result.params, result.macs) == (310, 300)
    assert result.latency_ms > 0
    assert measure(model, [torch.zeros(5, 30)]).macs == 300
    assert result.to_dict() == {"params": 310, "macs": 300, "latency_ms": result.latency_ms}
    assert tp.measure is measure
