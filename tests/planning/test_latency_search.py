from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import latency_search as module
from tensorpress.planning.latency_search import TRIES, fit_latency

DENSE_MS = 40.0
X = [torch.zeros(1)]


class Timed(nn.Module):
    """A model that is only asked how long it takes."""

    def __init__(self, ms: float) -> None:
        super().__init__()
        self.ms = ms


class Bench:
    """Stands for a machine on which a model predicted to take a share takes what it says."""

    def __init__(self, ms: Callable[[float], float], *, speeds: Sequence[float] = (1.0,)) -> None:
        self.ms, self.speeds, self.built, self.measured = ms, speeds, list[float](), 0

    def build(self, share: float) -> nn.Module:
        self.built.append(share)
        return Timed(self.ms(share))

    def pass_times(
        self, models: Sequence[Timed], inputs: Sequence[Tensor], **_: object
    ) -> list[list[float]]:
        speed = self.speeds[self.measured % len(self.speeds)]
        self.measured += 1
        return [[model.ms * speed * wave for wave in (1.0, 1.5, 0.9)] for model in models]

    def fit(
        self, target: float, *, relative: bool = True, lowest: float = 0.05
    ) -> tuple[float, float]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "time_passes", self.pass_times)
            patch.setattr(
                module, "measure_latencies", lambda *given: [t[0] for t in self.pass_times(*given)]
            )
            return fit_latency(
                self.build, Timed(DENSE_MS), X, target, relative=relative, lowest=lowest
            )


def test_a_right_prediction_needs_one_measurement() -> None:
    bench = Bench(lambda share: DENSE_MS * share)
    predicted, share = bench.fit(0.5)
    assert bench.built == [predicted] == [pytest.approx(0.475)]
    assert share == pytest.approx(0.475)


def test_a_target_in_milliseconds() -> None:
    predicted, ms = Bench(lambda share: 8 + 32 * share).fit(20.0, relative=False)
    assert 18 <= ms <= 20
    assert ms == pytest.approx(8 + 32 * predicted)


def test_a_share_does_not_depend_on_the_speed_of_the_machine() -> None:
    bench = Bench(lambda share: 10 + 30 * share**2, speeds=(1.0, 2.5, 0.4))
    predicted, share = bench.fit(0.6)
    assert 0.54 <= share <= 0.6
    assert share == pytest.approx((10 + 30 * predicted**2) / DENSE_MS)


@given(
    floor=st.floats(0, 0.5),
    power=st.floats(0.4, 3),
    target=st.floats(0.15, 0.98),
    lowest=st.floats(0.02, 0.3),
    relative=st.booleans(),
)
def test_the_target_is_met_within_ten_per_cent_or_is_out_of_reach(
    floor: float, power: float, target: float, lowest: float, relative: bool
) -> None:
    bench = Bench(lambda share: DENSE_MS * (floor + (1 - floor) * share**power))
    least = bench.ms(lowest) / DENSE_MS
    try:
        _, value = bench.fit(
            target if relative else DENSE_MS * target, relative=relative, lowest=lowest
        )
    except InvalidArgumentError:
        assert least > target
        assert min(bench.built) == lowest
    else:
        share = value if relative else value / DENSE_MS
        assert share <= target * (1 + 1e-9)
        assert share >= 0.9 * target or bench.built[-1] == lowest
    assert len(bench.built) <= TRIES
    assert all(lowest <= share <= 1 for share in bench.built)


def test_steps_that_miss_the_target_leave_the_nearest_model_below_it() -> None:
    bench = Bench(lambda share: DENSE_MS * (0.4 if share < 0.7 else 0.8))
    assert bench.fit(0.6)[1] == pytest.approx(0.4)
    assert len(bench.built) <= TRIES


@pytest.mark.parametrize(
    ("target", "relative", "message"),
    [
        (0.3, True, "latency of 30 % cannot be reached: .* takes 55 % of the dense model's"),
        (12.0, False, "latency of 12 ms cannot be reached: .* takes 22 ms"),
    ],
)
def test_a_target_below_the_cheapest_model_names_both(
    target: float, relative: bool, message: str
) -> None:
    bench = Bench(lambda share: 20 + 20 * share)
    with pytest.raises(InvalidArgumentError, match=message):
        bench.fit(target, relative=relative, lowest=0.1)
    assert min(bench.built) == 0.1


def test_a_model_slower_than_dense_is_out_of_reach() -> None:
    with pytest.raises(InvalidArgumentError, match="takes 125 %"):
        Bench(lambda share: 50 + share).fit(0.9, lowest=0.05)


def test_more_time_than_the_dense_model_takes_is_met_by_the_largest_model() -> None:
    assert Bench(lambda share: DENSE_MS * share).fit(60.0, relative=False)[0] == 1.0


def test_a_prediction_is_never_tried_again_once_the_answer_lies_between_two_alike() -> None:
    bench = Bench(lambda share: DENSE_MS * (0.3 if share < 0.5 else 0.9))
    bench.fit(0.5)
    assert len(bench.built) == len(set(bench.built))


def test_real_models_are_measured() -> None:
    def build(share: float) -> nn.Module:
        width = int(2048 * share)
        return nn.Sequential(nn.Linear(256, width), nn.Linear(width, 256))

    dense = build(1.0).train()
    _, share = fit_latency(build, dense, [torch.randn(16, 256)], 0.9, relative=True, lowest=0.01)
    assert 0 < share <= 0.9
    assert dense.training
