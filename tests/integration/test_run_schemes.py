"""Runs of recipes with a scheme that replaces layers."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import recipe

import tensorpress as tp
from command_line import call
from tensorpress.errors import InvalidArgumentError
from tensorpress.models import zoo
from tensorpress.planning import plan_from_model
from tensorpress.press.factor_norms import ScaleNorm
from tensorpress.runs.run import RunResult, run
from tensorpress.train.epoch import EpochRunner

PRESS: dict[str, Any] = {
    "scheme": "channel_svd",
    "ranks": "evbmf",
    "overrides": {"ip3": {"ranks": 4}, "ip2": {"scheme": "tensor_train", "ranks": 6}},
}


@pytest.fixture(scope="module")
def replaced(tmp_path_factory: pytest.TempPathFactory) -> RunResult:
    return run(recipe(press=PRESS), tmp_path_factory.mktemp("replaced") / "run", seed=3)


def dense_network(folder: Path) -> torch.nn.Module:
    dense = zoo.build("lenet300100")
    state = torch.load(folder / "checkpoints" / "dense.pt", weights_only=True)
    dense.load_state_dict(state["model"])
    return dense


def test_the_plan_is_that_of_the_trained_weights(replaced: RunResult) -> None:
    made = tp.plan(dense_network(replaced.folder), **PRESS)
    assert len({layer.scheme for layer in made.layers}) == 2
    assert plan_from_model(tp.load(replaced.folder / "model.tpz")).layers == made.layers
    assert [row.ranks for row in replaced.content.layers] == [layer.ranks for layer in made.layers]
    assert replaced.metrics["pressed"]["params"] == made.params


def test_metrics(replaced: RunResult) -> None:
    metrics = json.loads((replaced.folder / "metrics.json").read_text())
    assert metrics == replaced.metrics
    assert metrics["pressed"]["macs"] < metrics["dense"]["macs"]
    assert metrics["ratio"]["macs"] > 1.2
    assert metrics["dense"]["error"] <= metrics["pressed"]["start_error"] < 90
    assert metrics["recipe"]["press"]["ranks"] == "evbmf"
    page = (replaced.folder / "report.html").read_text()
    assert "error before fine-tuning (%)" in page
    assert f"{metrics['pressed']['start_error']:.2f}" in page


def test_the_terminal_tells_the_error_before_fine_tuning(
    replaced: RunResult, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start = f"{replaced.metrics['pressed']['start_error']:.2f}"
    said = call(
        monkeypatch, capsys, "run", replaced.folder / "recipe.yaml", "-o", replaced.folder, *SEED
    )
    [line] = [line for line in said.out.splitlines() if "before fine-tuning" in line]
    assert line.split()[-1] == start
    assert max(map(len, said.out.splitlines()[:-2])) <= 80


SEED = ("--seed", 3)


@pytest.mark.usefixtures("no_page")
def test_a_run_goes_on_to_the_same_file(
    tmp_path: Path, replaced: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoppedError(Exception):
        pass

    whole, done = EpochRunner.run, 0

    def interrupted(self: EpochRunner, *args: object) -> object:
        nonlocal done
        done += 1
        if done > 7:  # in the second epoch after pressing
            raise StoppedError
        return whole(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(EpochRunner, "run", interrupted)
        with pytest.raises(StoppedError):
            run(recipe(press=PRESS), tmp_path / "run", seed=3)
    result = run(recipe(press=PRESS), tmp_path / "run", seed=3)
    expected = (replaced.folder / "model.tpz").read_bytes()
    assert (tmp_path / "run" / "model.tpz").read_bytes() == expected
    assert result.metrics["pressed"] == replaced.metrics["pressed"]


@pytest.mark.parametrize(
    ("press", "message"),
    [
        ({"ranks": "evbmf", "overrides": {"ip9": {"ranks": 3}}}, "'ip9'"),
        ({"ranks": "evbmf", "overrides": {"ip2": {"ranks": 101}}}, "layer 'ip2': rank 1 of"),
        (
            {"overrides": {"ip2": {"scheme": "spatial_svd", "ranks": "evbmf"}}},
            "layer 'ip2': spatial",
        ),
        ({"ranks": "evbmf", "skip": ["ip*"]}, "no layer that can be pressed"),
        (
            {"ranks": "energy:0.9", "overrides": {"ip3": {"scheme": "ada_tucker"}}},
            "it needs modes",
        ),
        ({"ranks": 400}, "no layer that can be pressed; 'ip1': rank 1 of"),
    ],
)
def test_mistakes_show_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, press: Any, message: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained")

    monkeypatch.setattr(EpochRunner, "run", fail)
    with pytest.raises(InvalidArgumentError, match=message):
        run(recipe(press={"scheme": "channel_svd", **press}), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.usefixtures("no_page")
def test_ranks_and_factors_by_responses_lose_less(tmp_path: Path) -> None:
    press: dict[str, Any] = {"scheme": "channel_svd", "budget": "macs=4%"}
    responses = {"allocation": "responses", "calibrate": 300, "reconstruct": "nonlinear"}
    errors = []
    for name, more in {"weights": {}, "responses": responses}.items():
        result = run(recipe(press=press | more, train=None), tmp_path / name, seed=3)
        errors.append(result.metrics["pressed"]["start_error"])
    assert errors[1] < errors[0] - 15


@pytest.mark.usefixtures("no_page")
def test_norms_between_factors_are_gone_in_the_file(tmp_path: Path) -> None:
    press = {"scheme": "channel_svd", "ranks": 0.2, "init": "kaiming", "norms": True}
    train = {"epochs": 12, "lr": 0.01}
    result = run(recipe(press=press, train=train), tmp_path / "run", seed=3)
    assert result.metrics["pressed"]["error"] < 70
    loaded = tp.load(tmp_path / "run" / "model.tpz")
    assert not any(isinstance(module, ScaleNorm) for module in loaded.modules())


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("init", ["decompose", "kaiming"])
def test_the_initialization_may_be_chosen(tmp_path: Path, init: str) -> None:
    press = {"scheme": "tucker2", "ranks": 0.3, "init": init}
    result = run(recipe(press=press, quantize={"step": 0.1}), tmp_path / "run")
    assert (result.metrics["pressed"]["start_error"] is None) == (init == "kaiming")
    assert all((row.error is None) == (init == "kaiming") for row in result.content.layers)
