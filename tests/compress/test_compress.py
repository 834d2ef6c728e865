from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tensorpress as tp
from tensorpress.calibrate.batches import Batch, collect_batches
from tensorpress.compress import trials
from tensorpress.compress.split import halve_batches, split_batches, user_batches
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
    assert result.trial.fidelity is not None
    assert result.trial.fidelity.examples + result.fidelity.examples == 51  # a fifth of 256


def test_the_nearest_of_all_trials_is_returned(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=50%", data)
    distances = [t.fidelity.distance for t in result.trials if t.fidelity is not None]
    assert len(distances) > 1
    assert result.trial.fidelity is not None
    assert result.trial.fidelity.distance == min(distances)


def test_other_data_judge_than_choose(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=50%", data)
    _, held_out = split_batches(collect_batches(data, net))
    halves = halve_batches(held_out)
    assert [sum(map(len, half)) for half in halves] == [26, 25]
    for half, measured in zip(halves, (result.trial.fidelity, result.fidelity), strict=True):
        again = tp.fidelity(net, result.model, user_batches(half))
        assert measured is not None
        # The scale is that of all data in one, of the half in the other.
        assert again.error == pytest.approx(measured.error, rel=0.2)
        assert again.cosine == pytest.approx(measured.cosine)
        assert again.agreement == measured.agreement


def test_few_held_out_examples_choose_and_judge(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=50%", data[:5])
    assert result.fidelity == result.trial.fidelity
    assert result.fidelity is not None
    assert result.fidelity.examples == 32
    assert any("also chose" in text and "200" in text for text in result.warnings)
    enough = tp.compress(net, "params=50%", data)
    assert not any("also chose" in text for text in enough.warnings)


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
    assert result.trial.fidelity is not None
    assert result.trial.fidelity.distance <= min(others)


def test_a_budget_that_nothing_meets(net: Net, data: list[Tensor]) -> None:
    with pytest.raises(InvalidArgumentError, match="out of reach"):
        tp.compress(net, "params=1", data)
    with pytest.raises(InvalidArgumentError, match="cannot be met"):
        tp.compress(net, "bytes=3", data)


def test_one_example_is_not_held_out(net: Net) -> None:
    result = tp.compress(net, "params=60%", [torch.randn(1, 3, 8, 8)])
    assert "the one example" in result.warnings[0]
    assert "too few to judge" in result.verdict
    lines = str(result).splitlines()
    assert lines[1].startswith("warning: too few examples to judge the outputs: give at least 20")


def test_of_two_examples_one_judges_that_nothing_was_fitted_to() -> None:
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))
    result = tp.compress(net, "params=50%", [torch.randn(2, 32)])
    assert "too few examples to judge" in result.warnings[0]
    assert "the one example" not in result.warnings[0]


def test_seven_examples_are_not_judged(net: Net) -> None:
    result = tp.compress(net, "params=60%", [torch.randn(7, 3, 8, 8)], refine=False)
    assert "1 now" in result.warnings[0]
    assert "nearly the same" not in str(result)


def test_held_out_examples_are_of_all_classes() -> None:
    in_order = torch.arange(200) // 20
    cyclic = torch.arange(200) % 5
    for labels in (in_order, cyclic):
        batches = [Batch((x,), x) for x in labels.split(32)]
        fitted, judged = split_batches(batches)
        assert sum(map(len, judged)) == 40
        assert sum(map(len, fitted)) == 160
        seen = torch.cat([b.labels for b in judged if b.labels is not None])
        assert set(seen.tolist()) == set(labels.tolist())


def test_positions_and_scalars_are_not_cut() -> None:
    batch = Batch((torch.zeros(8, 8, 3), torch.arange(8), torch.tensor(2.0)), torch.arange(8))
    _, [judged] = split_batches([batch])
    assert [tuple(x.shape) for x in judged.inputs] == [(2, 8, 3), (8,), ()]
    steps = Batch((torch.zeros(8, 3, 5, 5), torch.arange(8)), None)
    _, [judged] = split_batches([steps])
    assert [len(x) for x in judged.inputs] == [2, 2]


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


def test_a_pressed_model_that_cannot_be_coded_does_not_end_the_trials(
    net: Net, data: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SHARES", (0.001, 0.6))  # the first is out of reach
    result = tp.compress(net, "bytes=8%", data, out=tmp_path / "net.tpz")
    failures = {trial.name: trial.failure for trial in result.trials}
    assert list(failures)[2:] == ["0 % of the parameters, coded", "60 % of the parameters, coded"]
    assert "out of reach" in str(failures["0 % of the parameters, coded"])
    assert failures["60 % of the parameters, coded"] is None
    assert (tmp_path / "net.tpz").stat().st_size == result.costs["bytes"][1]


def test_a_pressed_model_that_is_worse_ends_the_trials(
    net: Net, data: list[Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trials, "SHARES", (0.1, 0.6))
    result = tp.compress(net, "bytes=8%", data, out=tmp_path / "net.tpz")
    names = [trial.name for trial in result.trials]
    assert names == ["coding", "coding, by weights alone", "10 % of the parameters, coded"]
    assert result.trial.name in names[:2]
    loaded = tp.load(tmp_path / "net.tpz", Net())
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), result.model(data[0]))


def test_the_advice_names_a_milder_budget_and_what_was_measured_there(
    net: Net, data: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    result = tp.compress(net, "params=10%", data, refine=False)
    assert result.fidelity is not None
    [advice] = [text for text in result.advice if "they differ by" in text]
    budget, _, error = advice.removesuffix(" %").partition(": at ")[2].partition(" they differ by ")
    assert 100 * result.fidelity.error > 30 >= float(error)
    milder = tp.compress(net, budget, data, refine=False)
    assert milder.fidelity is not None
    assert milder.fidelity.error < 0.35


def test_a_budget_that_is_out_of_reach_is_warned_of_before(
    data: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    tp.compress(Net().eval(), "params=10%", data, refine=False)
    assert "at params=10% outputs are expected to differ by 177 %" in caplog.text


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(40, 24), nn.Linear(24, 40)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(self.table(input_ids))}


def test_arguments_by_name_give_example_inputs() -> None:
    ids = torch.randint(40, (64, 6))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    result = tp.compress(Tokens(), "macs=60%", [batch])
    dense, compressed = result.costs["macs"]
    assert compressed <= 0.6 * dense
    assert result.fidelity is not None
    assert result.fidelity.tokens
    assert "loss" in str(result)


def token_batch() -> dict[str, Tensor]:
    ids = torch.randint(40, (64, 6), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def test_a_language_model_is_pressed_by_the_curvature_of_its_loss() -> None:
    result = tp.compress(Tokens(), "macs=60%", [token_batch()])
    assert [trial.name for trial in result.trials] == ["curvature of the loss"]
    assert result.plan is not None
    assert [layer.scheme for layer in result.plan.layers] == ["pivoted_svd"]


def test_other_criteria_follow_where_the_loss_has_no_gradient() -> None:
    class Frozen(Tokens):
        @torch.no_grad()
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
            return super().forward(input_ids, attention_mask)

    result = tp.compress(Frozen(), "macs=60%", [token_batch()], refine=False)
    assert "no gradient" in (result.trials[0].failure or "")
    assert result.trial.name == "response energy"


def test_the_least_divergence_wins_where_outputs_are_logits(net: Net, data: list[Tensor]) -> None:
    labelled = [(x, torch.arange(32) % 5) for x in data]
    result = tp.compress(net, "params=50%", labelled)
    divergences = [t.fidelity.divergence for t in result.trials if t.fidelity is not None]
    assert result.trial.fidelity is not None
    assert result.trial.fidelity.divergence == min(d for d in divergences if d is not None)
    assert "divergence" in str(result)


def test_models_that_change_their_input_leave_it(net: Net, data: list[Tensor]) -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x.mul_(2))

    before = [x.clone() for x in data]
    tp.compress(InPlace(), "params=60%", data)
    assert all(torch.equal(x, y) for x, y in zip(data, before, strict=True))


def test_refinement_leaves_what_is_skipped_and_frozen(net: Net, data: list[Tensor]) -> None:
    net.stem.requires_grad_(False)
    result = tp.compress(net, "params=60%", data, skip=["head", "stem"])
    [refined] = [trial for trial in result.trials if "refined" in trial.name]
    assert refined.failure is None
    for name in ("stem", "head"):
        layer, dense = result.model.get_submodule(name), net.get_submodule(name)
        for parameter, value in zip(layer.parameters(), dense.parameters(), strict=True):
            assert torch.equal(parameter, value)
            assert parameter.requires_grad == value.requires_grad


def test_a_pressed_model_is_coded(net: Net, data: list[Tensor], tmp_path: Path) -> None:
    pressed = tp.compress(net, "params=60%", data, refine=False).model
    result = tp.compress(pressed, "bytes=50%", data, out=tmp_path / "small.tpz")
    loaded = tp.load(tmp_path / "small.tpz", Net())
    with torch.no_grad():
        assert torch.equal(loaded(data[0]), result.model(data[0]))


def test_the_file_is_that_of_the_best_trial_without_data(net: Net, tmp_path: Path) -> None:
    smallest = next(
        size for size in range(2, 40) if not _coding_fails(net, f"bytes={size}%", tmp_path / "a")
    )
    result = tp.compress(net, f"bytes={smallest}%", out=tmp_path / "net.tpz")
    assert result.file is not None
    assert result.file.stat().st_size == result.costs["bytes"][1]


def _coding_fails(net: Net, budget: str, out: Path) -> bool:
    try:
        tp.compress(net, budget, out=out)
    except InvalidArgumentError:
        return True
    return False


def test_an_error_in_refinement_does_not_lose_the_model(net: Net, data: list[Tensor]) -> None:
    class NoGradient(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        @torch.inference_mode()
        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

    result = tp.compress(NoGradient(), "params=60%", data)
    assert result.fidelity is not None
    failures = [trial.failure for trial in result.trials if trial.failure is not None]
    assert any("no gradient" in text for text in failures)


@pytest.mark.parametrize("place", ["weight", "data"])
def test_values_that_are_not_finite_are_named(net: Net, data: list[Tensor], place: str) -> None:
    if place == "weight":
        net.stem.weight.data[0] = torch.nan
    else:
        data[3][0] = torch.nan
    match = "parameter 'stem.weight'" if place == "weight" else "batch 3 "
    with pytest.raises(InvalidArgumentError, match=match):
        tp.compress(net, "params=60%", data)


def test_evaluate_runs_first_and_must_return_a_number(net: Net, data: list[Tensor]) -> None:
    calls: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(model)
        return None  # type: ignore[return-value]

    with pytest.raises(InvalidArgumentError, match="evaluate must return a number, not NoneType"):
        tp.compress(net, "params=60%", data, evaluate=evaluate)
    assert calls == [net]


def test_files_that_cannot_be_written_are_known_first(
    net: Net, data: list[Tensor], tmp_path: Path
) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be written"):
        tp.compress(net, "bytes=30%", data, out=tmp_path / "no" / "net.tpz")
    with pytest.raises(InvalidArgumentError, match="save_checkpoint"):
        tp.compress(net, "params=60%", data, out=tmp_path / "net.tpz")


def test_a_missing_percent_sign_is_guessed(net: Net, data: list[Tensor]) -> None:
    with pytest.raises(InvalidArgumentError, match="did you mean params=60%"):
        tp.compress(net, "params=60", data)
    with pytest.raises(InvalidArgumentError, match="make one by"):
        tp.press(net, "params=60%")  # type: ignore[arg-type]


def test_the_result_is_short_and_its_numbers_are_readable(net: Net, data: list[Tensor]) -> None:
    result = tp.compress(net, "params=60%", data)
    assert len(repr(result)) < 200
    text = str(result)
    assert f"{result.costs['params'][0]:,}" in text
    assert " ms" in text
    assert "e+0" not in text


def test_layers_with_too_few_inputs_are_warned_of_in_one_line(
    net: Net, data: list[Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    result = tp.compress(net, "params=60%", [data[0][:6]])
    assert sum("too little calibration data" in text for text in result.warnings) == 1
    assert "follows their noise" not in caplog.text


def test_the_package_has_its_modules_beside_the_function() -> None:
    import tensorpress.compress.trials as trials

    assert trials.EPOCHS > 0
    assert callable(tp.compress)


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
    assert result.trial.fidelity is not None
    assert result.trial.fidelity.distance == min(x.distance for x in fidelities)


def test_parameters_of_recurrent_layers_are_pressed_for_a_budget() -> None:
    torch.manual_seed(0)
    net = Recurrent().eval()
    data = [torch.randn(32, 10, 8) for _ in range(4)]
    result = tp.compress(net, "params=60%", data, skip=["lstm.weight_ih_l0"])
    assert result.costs["params"][1] <= 0.6 * result.costs["params"][0]
    assert result.plan is not None
    assert [layer.name for layer in result.plan.layers] == ["lstm.weight_hh_l0"]
    assert torch.equal(result.model.lstm.weight_ih_l0, net.lstm.weight_ih_l0)
    assert result.fidelity is not None
