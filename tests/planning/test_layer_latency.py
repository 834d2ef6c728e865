from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tensorpress.errors import InvalidArgumentError
from tensorpress.measure import count_params
from tensorpress.planning import layer_latency
from tensorpress.planning.layer_latency import LayerTimer, fill_randomly
from tensorpress.schemes.layer_spec import LayerSpec, describe_layer
from tensorpress.schemes.registry import rank_schemes, scheme

LINEAR = describe_layer(nn.Linear(96, 64, bias=False))
CONV = describe_layer(nn.Conv2d(16, 24, 3, padding=1))
SVD = scheme("channel_svd")
ROWS = torch.Size([8, 96])


class Bench:
    """Stands for a machine on which a layer takes a fixed time and so much a parameter."""

    def __init__(self) -> None:
        self.fixed_ms, self.slowness = 0.0, 1.0
        self.delays: Sequence[float] = (0.3, 0.0, 5.0)
        self.seen: list[tuple[list[nn.Module], Tensor]] = []

    def __call__(
        self, layers: Sequence[nn.Module], inputs: Sequence[Tensor], **_: object
    ) -> list[list[float]]:
        self.seen.append((list(layers), inputs[0]))
        for layer in layers:
            layer(*inputs)
        return [
            [self.slowness * self.ms(layer) + delay for delay in self.delays] for layer in layers
        ]

    def ms(self, layer: nn.Module) -> float:
        return self.fixed_ms + count_params(layer) / 1000


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    monkeypatch.setattr(layer_latency, "time_passes", bench)
    return bench


def timer_of(dtype: torch.dtype = torch.float32, **options: int) -> LayerTimer:
    return LayerTimer(torch.zeros(1, dtype=dtype), [torch.zeros(1)], **options)


def test_ranks_that_were_not_timed_lie_on_the_line_between_those_that_were(bench: Bench) -> None:
    bench.fixed_ms = 0.7
    candidates = [(r,) for r in range(2, 65)]
    result = timer_of().time_pressed(SVD, LINEAR, candidates, [ROWS])
    assert result == pytest.approx([0.7 + 160 * r / 1000 for (r,) in candidates])


def test_below_the_smallest_rank_timed_no_time_is_saved(bench: Bench) -> None:
    timer = timer_of()
    spec, shape = describe_layer(nn.Linear(960, 640)), torch.Size([4, 960])
    few = timer.time_pressed(SVD, spec, [(1,), (2,), (3,)], [shape])
    smallest = min(count_params(layer) for layer in bench.seen[0][0])
    assert few == [pytest.approx(smallest / 1000)] * 3


def test_a_pass_that_was_disturbed_makes_no_rank_slower_than_a_larger_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    disturbed = {(11,), (29,)}
    undisturbed = bench.ms
    monkeypatch.setattr(
        bench,
        "ms",
        lambda layer: (
            (9.0 if getattr(layer, "ranks", None) in disturbed else 1.0) * undisturbed(layer)
        ),
    )
    result = timer_of().time_pressed(SVD, LINEAR, [(r,) for r in range(1, 65)], [ROWS])
    timed = {layer.ranks for layer in bench.seen[0][0][1:]}
    assert disturbed <= timed
    assert result == sorted(result)
    assert result[-1] == pytest.approx(160 * 64 / 1000)


def test_dense_time_adds_up_over_calls(bench: Bench) -> None:
    timer = timer_of()
    one = timer.time_dense(LINEAR, [ROWS])
    assert one == pytest.approx(96 * 64 / 1000)
    assert timer.time_dense(LINEAR, [ROWS] * 3) == pytest.approx(3 * one)
    assert timer.time_dense(LINEAR, [ROWS, torch.Size([2, 5, 96])]) == pytest.approx(2 * one)
    assert timer.time_dense(LINEAR, []) == 0
    assert timer.time_pressed(SVD, LINEAR, [(4,), (8,)], []) == [0, 0]


def test_pressed_time_adds_up_over_calls(bench: Bench) -> None:
    timer = timer_of()
    shapes = [torch.Size([2, 16, 8, 8]), torch.Size([2, 16, 5, 7]), torch.Size([2, 16, 8, 8])]
    tucker, candidates = scheme("tucker2"), [(4, 4), (8, 12)]
    each = [timer.time_pressed(tucker, CONV, candidates, [shape]) for shape in shapes]
    assert timer.time_pressed(tucker, CONV, candidates, shapes) == pytest.approx(
        np.sum(each, axis=0)
    )


def test_the_same_layer_is_timed_once(bench: Bench) -> None:
    timer = timer_of()
    same = describe_layer(nn.Linear(96, 64, bias=False))
    first = timer.time_pressed(SVD, LINEAR, [(5,), (9,)], [ROWS, ROWS])
    assert timer.time_pressed(SVD, same, [(9,), (5,)], [ROWS, ROWS]) == first[::-1]
    timer.time_dense(same, [ROWS])
    assert len(bench.seen) == 1
    timer.time_pressed(SVD, same, [(5,)], [torch.Size([9, 96])])
    timer.time_pressed(SVD, describe_layer(nn.Linear(96, 64)), [(5,)], [ROWS])
    timer.time_pressed(scheme("tucker2"), LINEAR, [(5, 5)], [ROWS])
    assert len(bench.seen) == 4


def test_a_faster_machine_later_does_not_make_later_schemes_faster(bench: Bench) -> None:
    timer = timer_of()
    before = timer.time_pressed(SVD, LINEAR, [(32,)], [ROWS])
    bench.slowness = 0.02
    again = timer.time_pressed(scheme("tucker1_out"), LINEAR, [(32,)], [ROWS])
    assert again == pytest.approx(before)


def test_few_ranks_are_timed_and_the_largest_among_them(bench: Bench) -> None:
    timer_of().time_pressed(SVD, LINEAR, [(r,) for r in range(1, 65)], [ROWS])
    [(layers, _)] = bench.seen
    ranks = [layer.ranks for layer in layers[1:]]
    assert len(ranks) == len(set(ranks)) == len(layer_latency.SHARES)
    assert ranks == sorted(ranks)  # type: ignore[type-var]
    assert ranks[-1] == (64,)
    assert isinstance(layers[0], nn.Linear)


def test_ranks_that_are_timed_are_multiples(bench: Bench) -> None:
    timer_of(round_to=16).time_pressed(
        scheme("tucker2"), CONV, [(16, 16)], [torch.Size([1, 16, 8, 8])]
    )
    [(layers, _)] = bench.seen
    assert {layer.ranks for layer in layers[1:]} == {(16, 16), (16, 24)}


def test_a_rebuilt_weight_takes_the_time_of_the_dense_layer(bench: Bench) -> None:
    timer = timer_of()
    result = timer.time_pressed(scheme("tt_weight"), LINEAR, [(2, 2), (4, 4)], [ROWS])
    assert result == [timer.time_dense(LINEAR, [ROWS])] * 2
    assert [len(layers) for layers, _ in bench.seen] == [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_values_are_random_and_near_one(bench: Bench, dtype: torch.dtype) -> None:
    state = torch.get_rng_state()
    timer_of(dtype).time_pressed(scheme("tucker2"), CONV, [(4, 4)], [torch.Size([2, 16, 8, 8])])
    assert torch.equal(torch.get_rng_state(), state)
    [(layers, x)] = bench.seen
    values = [x, *(p for layer in layers for p in layer.parameters())]
    assert all(value.dtype == dtype for value in values)
    assert all(bool(torch.isfinite(value).all()) for value in values)
    assert all(value.unique().numel() > 1 for value in values)
    for layer in layers:
        assert 0.1 < float(layer(x).detach().float().std()) < 10


def test_filling_makes_every_value_finite_and_leaves_the_global_stream() -> None:
    module = nn.Sequential(nn.Conv2d(8, 16, 3), nn.BatchNorm2d(16))
    module.register_parameter("scale", nn.Parameter(torch.tensor(torch.nan)))
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.nan)
    state = torch.get_rng_state()
    fill_randomly(module)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(bool(torch.isfinite(p).all()) for p in module.parameters())
    assert float(module[0].weight.detach().std()) == pytest.approx(72**-0.5, rel=0.1)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_layers_see_inputs_as_the_model_has_them(bench: Bench) -> None:
    shape = torch.Size([2, 16, 8, 8])
    image = torch.zeros(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    timer = LayerTimer(torch.zeros(1), [torch.zeros(1), image])
    timer.time_dense(CONV, [shape])
    timer.time_dense(LINEAR, [torch.Size([2, 3, 5, 96])])
    timer.time_dense(describe_layer(nn.Embedding(30, 8)), [torch.Size([2, 7])])
    timer_of().time_dense(CONV, [shape])
    inputs = [x for _, x in bench.seen]
    assert inputs[0].is_contiguous(memory_format=torch.channels_last)
    assert not inputs[0].is_contiguous()
    assert inputs[1].is_contiguous()
    assert inputs[2].dtype == torch.int64
    assert inputs[2].max() < 30
    assert inputs[3].is_contiguous()


def test_volumes_in_channels_last(bench: Bench) -> None:
    clip = torch.zeros(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d)
    spec = describe_layer(nn.Conv3d(3, 8, 3))
    LayerTimer(torch.zeros(1), [clip]).time_dense(spec, [clip.shape])
    [(_, x)] = bench.seen
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    assert not x.is_contiguous()


def test_the_meta_device_takes_no_time() -> None:
    with pytest.raises(InvalidArgumentError, match="meta device"):
        LayerTimer(torch.zeros(1, device="meta"), [])


LAYERS = {
    "Linear": (nn.Linear(64, 48), (3, 5, 64)),
    "Embedding": (nn.Embedding(64, 48), (3, 5)),
    "Conv1d": (nn.Conv1d(8, 12, 3), (2, 8, 20)),
    "Conv2d": (nn.Conv2d(8, 12, 3, padding=1), (2, 8, 9, 9)),
    "grouped": (nn.Conv2d(8, 12, 3, groups=2, stride=2), (2, 8, 9, 9)),
    "ConvTranspose2d": (nn.ConvTranspose2d(8, 12, 4, stride=2), (2, 8, 5, 5)),
}


@pytest.mark.parametrize("layer", LAYERS)
def test_every_scheme_is_timed_for_real(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_latency, "REPEATS", 3)
    module, shape = LAYERS[layer]
    spec, timer = describe_layer(module), timer_of()
    for result in rank_schemes().values():
        if result.refusal(spec) is not None:
            continue
        largest = result.largest_ranks(spec)
        ranks = [result.attainable(spec, (1,) * len(largest)), largest]
        times = timer.time_pressed(result, spec, ranks, [torch.Size(shape)])
        assert len(times) == 2
        assert all(0 < ms < float("inf") for ms in times)


def test_spec_is_all_that_is_needed() -> None:
    spec = LayerSpec("Linear", 32, 32)
    assert timer_of().time_dense(spec, [torch.Size([32])]) > 0
