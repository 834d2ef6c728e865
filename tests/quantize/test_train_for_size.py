import copy

import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning import plan_from_model
from tensorpress.quantize import train_for_size
from tensorpress.train import TrainConfig, evaluate, fit


@pytest.fixture(scope="module")
def task():
    """Four classes that a linear map tells apart by two of twenty inputs."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(512, 20, generator=generator)
    labels = (inputs[:, 0] > 0).long() + 2 * (inputs[:, 1] > 0).long()
    return list(zip(inputs.split(64), labels.split(64), strict=True))


@pytest.fixture(scope="module")
def dense(task):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 4))
    fit(model, task, TrainConfig(epochs=20, lr=0.01))
    return model.eval()


PHASES = {
    "noise": TrainConfig(epochs=15, lr=0.01, schedule="cosine"),
    "hard": TrainConfig(epochs=5, lr=0.005, schedule="cosine"),
}


def size_of(model, quantizers, folder):
    return tp.save(model, folder / "model.tpz", quantizer=quantizers)


def test_a_larger_tradeoff_gives_a_smaller_file_and_inputs_of_no_use_cost_nothing(
    task, dense, tmp_path
):
    sizes = []
    longer = {"noise": TrainConfig(epochs=40, lr=0.02, schedule="cosine"), "hard": PHASES["hard"]}
    for tradeoff in (0.1, 5.0):
        model = copy.deepcopy(dense)
        quantizers = train_for_size(model, task, tradeoff=tradeoff, **longer)
        sizes.append(size_of(model, quantizers, tmp_path))
        assert evaluate(model.eval(), task).error < 12
    assert sizes[1] < sizes[0]
    weight = model[0].weight.detach()
    assert weight[:, :2].count_nonzero() > 0
    assert weight[:, 2:].count_nonzero() < weight[:, 2:].numel() / 10


def test_the_file_holds_the_model_that_was_trained(task, dense, tmp_path):
    model = copy.deepcopy(dense)
    quantizers = train_for_size(model, task, tradeoff=0.2, **PHASES)
    size_of(model, quantizers, tmp_path)
    loaded = tp.load(tmp_path / "model.tpz", copy.deepcopy(dense))
    inputs = task[0][0]
    assert torch.equal(loaded(inputs), model.eval()(inputs))


def test_statistics_of_norms_are_merged_and_the_rest_is_paid_for(task, dense):
    model = copy.deepcopy(dense)
    quantizers = train_for_size(model, task, tradeoff=0.1, hard=PHASES["hard"])
    assert torch.equal(model[1].running_var, torch.ones(32))
    assert not model[1].running_mean.any()
    assert {"1.weight", "1.bias"} <= quantizers.keys()


def test_training_starts_from_weights_rounded_by_calibration(task, dense, tmp_path):
    barely = {"tradeoff": 1e-3, "hard": TrainConfig(epochs=1, lr=1e-6)}
    sizes = {}
    for size in (400, 700):
        model = copy.deepcopy(dense)
        quantizers = train_for_size(model, task, calibration=task[:2], size=size, **barely)
        sizes[size] = size_of(model, quantizers, tmp_path)
        assert evaluate(model.eval(), task).error < 20
    assert sizes[400] < 450 < 600 < sizes[700] < 800


def test_calibration_needs_a_size(task, dense):
    with pytest.raises(InvalidArgumentError, match="both calibration and size"):
        train_for_size(dense, task, tradeoff=1.0, hard=PHASES["hard"], calibration=task)


def test_ranks_of_zeros_are_dropped(task, dense, tmp_path):
    layers = {"0": {"modes": [8, 4, 5, 4], "ranks": 4}}
    model = tp.press(dense, tp.plan(dense, scheme="ada_tucker", overrides=layers))
    with torch.no_grad():
        factors = model[0].parametrizations.weight
        factors.original1[:, 3] = 0
    quantizers = train_for_size(model, task, tradeoff=0.5, hard=TrainConfig(epochs=1, lr=1e-5))
    ranks = plan_from_model(model).layers[0].ranks
    assert ranks[0] < 4
    assert size_of(model, quantizers, tmp_path) > 0


def test_an_interrupted_training_goes_on_to_the_same_result(task, dense, tmp_path):
    class StopError(Exception):
        pass

    def interrupted(batches, count):
        class Source(list):
            passes = 0

            def __iter__(self):
                Source.passes += 1
                if Source.passes > count:
                    raise StopError
                return super().__iter__()

        return Source(batches)

    models = [copy.deepcopy(dense) for _ in range(3)]
    phases = {k: v.model_copy(update={"epochs": 3}) for k, v in PHASES.items()}
    expected = train_for_size(models[0], task, tradeoff=0.1, **phases)
    with pytest.raises(StopError):
        train_for_size(
            models[1], interrupted(task, 4), tradeoff=0.1, checkpoints=tmp_path, **phases
        )
    quantizers = train_for_size(models[2], task, tradeoff=0.1, checkpoints=tmp_path, **phases)
    assert quantizers == expected
    for one, other in zip(models[0].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("tradeoff", [0.0, -1.0, float("nan")])
def test_tradeoffs_that_are_not_positive_are_refused(task, tradeoff):
    with pytest.raises(InvalidArgumentError, match="tradeoff must be positive"):
        train_for_size(nn.Linear(20, 4), task, tradeoff=tradeoff, hard=PHASES["hard"])
