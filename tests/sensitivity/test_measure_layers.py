from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.scores import Scores
from tensorpress.schemes.press_layer import press_layer
from tensorpress.sensitivity import measure_layers, sensitivity

spearmanr = pytest.importorskip("scipy.stats").spearmanr

SCHEME = "channel_svd"
FEW = {"scheme": SCHEME, "candidates": 3}


def _values(scores: Scores) -> list[float]:
    return [choice.score for choices in scores.layers.values() for choice in choices]


def _loss(model: nn.Module, batches: list) -> float:
    model.eval()
    with torch.no_grad():
        total = sum(functional.cross_entropy(model(x), y, reduction="sum") for x, y in batches)
    return float(total) / sum(len(y) for _, y in batches)


def test_a_score_is_the_increase_of_the_loss_when_the_layer_alone_is_pressed(net, batches):
    scores = sensitivity(net, batches, metric="loss", **FEW)
    choice = scores.choices("second")[0]
    changed = deepcopy(net)
    changed.second = press_layer(changed.second, choice.scheme, choice.ranks)
    assert scores.dense == pytest.approx(_loss(deepcopy(net), batches))
    expected = _loss(changed, batches) - scores.dense
    assert choice.measured
    assert choice.increase == pytest.approx(expected, rel=1e-4)
    assert choice.score >= choice.increase


@pytest.mark.parametrize("metric", ["loss", "error", "similarity"])
@pytest.mark.parametrize("measured", [None, 0])
def test_a_layer_that_hardly_matters_scores_lowest(net, batches, metric, measured):
    scores = sensitivity(net, batches, metric=metric, measured=measured, **FEW)
    worst = {name: max(choice.score for choice in scores.choices(name)) for name in scores.layers}
    others = min(score for name, score in worst.items() if name != "idle")
    assert worst["idle"] < 0.05 * others


def test_estimates_order_the_choices_nearly_as_measuring_does(net, batches):
    measured = sensitivity(net, batches, scheme="auto", candidates=4)
    estimated = sensitivity(net, batches, scheme="auto", candidates=4, measured=0)
    assert not any(choice.measured for choices in estimated.layers.values() for choice in choices)
    assert spearmanr(_values(measured), _values(estimated)).statistic > 0.9


def test_of_a_linear_model_estimates_are_the_squared_distance_in_expectation():
    torch.manual_seed(0)
    net = nn.Linear(12, 6)
    data = [torch.randn(4000, 12)]
    measured = sensitivity(net, data, **FEW)
    estimated = sensitivity(net, data, measured=0, **FEW)
    norm = float(net(data[0]).detach().square().sum(dim=1).mean())
    for exact, guess in zip(measured.choices(""), estimated.choices(""), strict=True):
        assert guess.score == pytest.approx(exact.increase * norm, rel=0.1)


def test_the_model_is_as_before(net, batches):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modules, modes = dict(net.named_modules()), [m.training for m in net.modules()]
    net.first.requires_grad_(False)
    asked = [p.requires_grad for p in net.parameters()]
    sensitivity(net, batches, scheme=SCHEME, candidates=1)
    assert dict(net.named_modules()) == modules
    assert [m.training for m in net.modules()] == modes
    assert [p.requires_grad for p in net.parameters()] == asked
    assert all(p.grad is None for p in net.parameters())
    assert not any(m._forward_hooks for m in net.modules())
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])
    net.first.requires_grad_(True)


def test_an_interrupted_run_goes_on_where_it_stopped(net, batches, tmp_path):
    expected = sensitivity(net, batches, metric="loss", **FEW)
    calls = 0

    def counted(model: nn.Module) -> float:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return _loss(model, batches)

    with pytest.raises(KeyboardInterrupt):
        sensitivity(net, batches, metric=counted, journal=tmp_path, **FEW)
    scores = sensitivity(net, batches, metric=counted, journal=tmp_path, **FEW)
    assert (
        calls == 1 + 4 + 1 + 9
    )  # the dense model, 3 jobs and the interrupted one; again, the rest
    assert _values(scores) == pytest.approx(_values(expected), rel=1e-4, abs=1e-6)


def test_a_journal_that_is_not_finished_is_filled_by_estimates(net, batches, tmp_path):
    partial = sensitivity(net, batches, journal=tmp_path, measured=5, **FEW)
    again = sensitivity(net, batches, journal=tmp_path, measured=0, **FEW)
    full = sensitivity(net, batches, journal=tmp_path, **FEW)
    flags = [choice.measured for choices in partial.layers.values() for choice in choices]
    assert sum(flags) == 5
    assert again == partial
    measured = {(n, c.ranks): c.increase for n, cs in partial.layers.items() for c in cs}
    for name, choices in full.layers.items():
        for choice in choices:
            assert measured[name, choice.ranks] in (None, choice.increase)
    assert spearmanr(_values(partial), _values(full)).statistic > 0.7


def test_estimates_are_made_once_a_journal(net, batches, tmp_path, monkeypatch):
    first = sensitivity(net, batches, journal=tmp_path, measured=0, **FEW)
    monkeypatch.setattr(measure_layers, "estimate_losses", lambda *_: pytest.fail("made again"))
    assert sensitivity(net, batches, journal=tmp_path, measured=0, **FEW) == first
    with pytest.raises(pytest.fail.Exception):
        sensitivity(net, batches, journal=tmp_path, measured=0, **{**FEW, "candidates": 2})


def test_one_journal_holds_all_named_metrics(net, batches, tmp_path):
    sensitivity(net, batches, metric="loss", journal=tmp_path, **FEW)
    error = sensitivity(net, batches, metric="error", journal=tmp_path, measured=0, **FEW)
    assert error.metric == "error"
    assert all(choice.measured for choices in error.layers.values() for choice in choices)


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads do not outlive a fork
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("workers", [{"processes": 2}, {"executor": ThreadPoolExecutor(2)}])
def test_workers_measure_what_one_process_measures(net, batches, tmp_path, workers):
    scores = sensitivity(net, batches, journal=tmp_path, **workers, **FEW)
    assert _values(scores) == pytest.approx(_values(sensitivity(net, batches, **FEW)), abs=1e-6)


def test_a_metric_that_cannot_be_sent_is_an_error(net, batches):
    with pytest.raises(InvalidArgumentError, match="cannot be sent to other processes"):
        sensitivity(net, batches, metric=lambda m: 0.0, processes=2, **FEW)


def test_a_journal_of_other_weights_or_data_is_an_error(net, batches, tmp_path):
    sensitivity(net, batches, journal=tmp_path, measured=1, **FEW)
    with pytest.raises(InvalidArgumentError, match="'batches' is"):
        sensitivity(net, batches[:1], journal=tmp_path, measured=1, **FEW)
    other = deepcopy(net)
    with torch.no_grad():
        other.first.weight[0, 0, 0, 0] += 1e-3
    with pytest.raises(InvalidArgumentError, match="'weights' is"):
        sensitivity(other, batches, journal=tmp_path, measured=1, **FEW)
    with pytest.raises(InvalidArgumentError, match="'metric' is"):
        sensitivity(net, batches, metric=lambda m: 0.0, journal=tmp_path, measured=1, **FEW)


def test_a_damaged_result_of_a_journal_is_measured_again(net, batches, tmp_path):
    scores = sensitivity(net, batches, journal=tmp_path, measured=0, **FEW)
    [path] = [path for path in tmp_path.glob("*.json") if path.name != "subject.json"]
    path.write_text("{")
    assert sensitivity(net, batches, journal=tmp_path, measured=0, **FEW) == scores


@pytest.mark.parametrize("rule", ["total", "worst"])
def test_a_plan_takes_what_hurts_least_within_its_budget(net, batches, rule):
    scores = sensitivity(net, batches, scheme=("channel_svd", "tucker2"), measured=10)
    scores = replace(scores, rule=rule)
    plan = tp.plan(net, budget="params=60%", allocation=scores)
    assert plan.params <= 0.6 * plan.dense_params
    pressed = {layer.name: layer for layer in plan.layers}
    assert "idle" in pressed
    for layer in plan.layers:
        assert (layer.scheme, layer.ranks) in {
            (c.scheme, c.ranks) for c in scores.choices(layer.name)
        }


def test_inputs_alone_are_enough_for_similarity(net, batches):
    inputs = [images for images, _ in batches]
    scores = sensitivity(net, inputs, **FEW)
    assert scores.dense == 0
    assert scores.layers == sensitivity(net, batches, **FEW).layers


def test_targets_and_skip_choose_layers(net, batches):
    scores = sensitivity(net, batches, targets=["*i*"], skip=["first"], measured=0, **FEW)
    assert list(scores.layers) == ["idle", "classifier"]


def test_several_arguments_and_labels_by_position_fit_a_model_of_sequences():
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(40, 16), nn.Linear(16, 40)

        def forward(self, words: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
            return self.head(input=self.embedding(words) * scale[:, None, None])

    torch.manual_seed(0)
    words = torch.randint(40, (6, 9))
    data = [((words, torch.rand(6)), words)]
    scores = sensitivity(Words(), data, **FEW)
    assert set(scores.layers) == {"embedding", "head"}
    estimated = sensitivity(Words(), data, measured=0, **FEW)
    assert all(score > 0 for score in _values(estimated))


def test_a_layer_in_two_places_is_pressed_in_both(batches):
    torch.manual_seed(0)
    shared = nn.Linear(64, 64)
    net = nn.Sequential(nn.Flatten(), shared, nn.ReLU(), shared, nn.Linear(64, 10))
    scores = sensitivity(net, batches, **FEW)
    small = press_layer(shared, SCHEME, scores.choices("1")[0].ranks)
    pressed = nn.Sequential(net[0], small, net[2], small, net[4])
    data = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        moved = (pressed(data) - net(data)).square().sum() / net(data).square().sum()
    assert scores.choices("1")[0].increase == pytest.approx(float(moved), rel=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batches": []}, "batches is empty"),
        ({"batches": [(torch.zeros(0, 1, 8, 8), torch.zeros(0).long())]}, "no examples"),
        ({"batches": [torch.zeros(3, 1, 8, 8)], "metric": "loss"}, "needs labels"),
        ({"batches": [{"x": 1}]}, "a batch must be a Tensor"),
        (
            {"batches": [(torch.zeros(3, 1, 8, 8), torch.zeros(2).long())]},
            "must be integer classes",
        ),
        ({"batches": [(torch.zeros(1, 1, 8, 8), torch.tensor([10]))]}, "between 0 and 9"),
        ({"metric": "los"}, "did you mean 'loss'"),
        ({"metric": lambda model: float("nan")}, "is nan"),
        ({"scheme": "tucker"}, "unknown scheme"),
        ({"scheme": "ada_tucker"}, "ada_tucker"),
        ({"targets": ["nothing"]}, "nothing"),
        ({"skip": ["*"]}, "no layer"),
        ({"candidates": 0}, "candidates"),
        ({"measured": -1}, "measured"),
    ],
)
def test_bad_input_is_told(net, batches, wrong, message):
    with pytest.raises(InvalidArgumentError, match=message):
        sensitivity(net, **{"batches": batches, **FEW, **wrong})


def test_a_model_whose_outputs_are_no_numbers_is_told(net, batches):
    net = deepcopy(net)
    with torch.no_grad():
        net.norm.weight[0] = float("nan")
    with pytest.raises(InvalidArgumentError, match="the similarity of the model is nan"):
        sensitivity(net, batches, **FEW)


def test_weights_that_are_no_numbers_name_their_layer(net, batches):
    broken = deepcopy(net)
    with torch.no_grad():
        broken.idle.weight[0, 0, 0, 0] = float("inf")
    with pytest.raises(InvalidArgumentError, match="'idle'"):
        sensitivity(broken, batches, metric=lambda model: 0.0, **FEW)


def test_a_metric_that_fails_at_one_choice_names_it(net, batches):
    def metric(model: nn.Module) -> float:
        return 0.0 if isinstance(model.second, nn.Conv2d) else float("inf")

    with pytest.raises(InvalidArgumentError, match=r"layer 'second', channel_svd \(\d+,\).*is inf"):
        sensitivity(net, batches, metric=metric, **FEW)
