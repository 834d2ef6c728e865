"""Runs that train for size."""

import json

import pytest
import torch
from tiny_runs import recipe

import tensorpress as tp
from tensorpress.data import batches
from tensorpress.data.splits import load_splits
from tensorpress.errors import InvalidArgumentError
from tensorpress.models.zoo import network, save_weights
from tensorpress.runs.run import run
from tensorpress.train import evaluate

RATE = {
    "tradeoff": 0.2,
    "noise": {"epochs": 12, "lr": 0.01, "schedule": "cosine"},
    "hard": {"epochs": 2, "lr": 0.005, "distill": {"weight": 0.5, "temperature": 2}},
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return run(recipe(quantize=None, rate=RATE), tmp_path_factory.mktemp("rate") / "out", seed=1)


def test_the_file_has_the_error_that_is_reported(finished):
    net = network("lenet300100")
    test = load_splits(net, "digits", None, 200).test
    model = tp.load(finished.folder / "model.tpz")
    error = evaluate(model, batches(test, net.preprocess, 500, shuffle=False)).error
    assert error == pytest.approx(finished.metrics["file"]["error"])
    assert finished.metrics["errors_on"] == "test"


def test_a_larger_tradeoff_gives_a_smaller_file(finished, tmp_path):
    heavier = run(recipe(quantize=None, rate=RATE | {"tradeoff": 2.0}), tmp_path / "out", seed=1)
    assert heavier.metrics["file"]["bytes"] < 0.8 * finished.metrics["file"]["bytes"]


def test_every_phase_is_in_the_report_one_after_the_other(finished):
    curves = {curve.name: curve for curve in finished.content.curves[0].curves}
    assert list(curves) == ["dense", "train", "noise", "hard"]
    assert curves["noise"].epochs[0] == curves["train"].epochs[-1] + 1
    assert curves["hard"].epochs[0] == curves["noise"].epochs[-1] + 1


def test_a_finished_run_is_gone_on_with_to_the_same_file(finished):
    before = (finished.folder / "model.tpz").read_bytes()
    again = run(recipe(quantize=None, rate=RATE), finished.folder, seed=1)
    assert (finished.folder / "model.tpz").read_bytes() == before
    assert again.metrics["file"] == finished.metrics["file"]


def test_a_dense_network_is_trained_for_size_too(tmp_path):
    result = run(recipe(press=None, train=None, quantize=None, rate=RATE), tmp_path, seed=1)
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["ratio"]["params"] == 1
    assert metrics["ratio"]["file"] > 8
    assert {row.scheme for row in result.content.layers} == {"dense"}


def test_without_looking_at_the_test_set(tmp_path, monkeypatch):
    from tensorpress.runs.training import Phases

    monkeypatch.setattr(Phases, "test_error", lambda *_: pytest.fail("the test set was seen"))
    result = run(recipe(quantize=None, rate=RATE), tmp_path, seed=1, test=False)
    assert result.metrics["errors_on"] == "validation"
    assert result.metrics["file"]["error"] == result.metrics["file"]["validation_error"]
    assert "Validation error" in (tmp_path / "report.html").read_text()


def test_errors_need_images(tmp_path):
    data = {"name": "digits", "validation": 0}
    with pytest.raises(InvalidArgumentError, match=r"data\.validation is 0"):
        run(recipe(data=data), tmp_path, test=False)


def test_runs_that_share_their_training_are_as_if_they_did_not(finished, tmp_path):
    common = tmp_path / "common"
    other = recipe(quantize=None, rate=RATE | {"tradeoff": 2.0})
    run(other, tmp_path / "other", seed=1, common=common)
    found = {path: path.stat().st_mtime_ns for path in common.glob("*/*.pt")}
    assert sorted(path.name for path in found) == ["dense.pt", "train.pt"]
    again = run(recipe(quantize=None, rate=RATE), tmp_path / "out", seed=1, common=common)
    assert {path: path.stat().st_mtime_ns for path in common.glob("*/*.pt")} == found
    assert (again.folder / "model.tpz").read_bytes() == (finished.folder / "model.tpz").read_bytes()
    run(recipe(quantize=None, rate=RATE), tmp_path / "seed", seed=2, common=common)
    assert len(list(common.glob("*/dense.pt"))) == 2


def test_a_network_listens_to_a_teacher_of_its_own(tmp_path):
    """A teacher that always says 3 is believed."""
    teacher = network("lenet300100").build()
    torch.nn.init.zeros_(teacher.ip3.weight)
    teacher.ip3.bias.data = 20.0 * (torch.arange(10) == 3)
    save_weights(teacher, tmp_path / "teacher.safetensors")
    hard = {"epochs": 3, "lr": 0.01, "distill": {"weight": 1, "temperature": 1}}
    told = {"network": "lenet300100", "weights": str(tmp_path / "teacher.safetensors")}
    result = run(
        recipe(
            data={"name": "digits", "validation": 200, "batch_size": 200, "variants": 1},
            quantize=None,
            teacher=told,
            rate={"tradeoff": 0.01, "hard": hard},
        ),
        tmp_path / "out",
    )
    model = tp.load(result.folder / "model.tpz")
    images = load_splits(network("lenet300100"), "digits", None, 200).test.images
    said = model(network("lenet300100").preprocess(images)).argmax(1)
    assert float((said == 3).float().mean()) > 0.95
