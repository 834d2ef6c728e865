"""Data that do not fit a model are our errors, which say what was expected."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from readers import net
from torch import nn

import tensorpress as tp
from command_line import call as call_command
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.train.evaluate import evaluate

X, Y = torch.ones(4, 6), torch.zeros(4).long()


def used_up() -> Any:
    batches = iter([(X, Y)])
    list(batches)
    return batches


DATA: dict[str, tuple[Callable[[], Any], str]] = {
    "no batches": (list, "is empty|has 0"),
    "used generator": (used_up, "is exhausted|must have a length"),
    "empty batch": (lambda: [(X[:0], Y[:0])], "no examples"),
    "integers": (lambda: [(X.long(), Y)], r"fails on .*torch.int64.*dtype"),
    "doubles": (
        lambda: [(X.double(), Y)],
        r"fails on .*torch.float64.*dtype",
    ),
    "other width": (lambda: [(X, Y), (torch.ones(4, 7), Y)], r"fails on .*\(\d, 7\)"),
    "unknown argument": (lambda: [{"foo": X, "labels": Y}], r"(fails on|not accept) .*foo="),
    "no tensors": (lambda: ["abc"], "a batch must be a Tensor .* got str"),
    "a number": (lambda: 3, "an iterable, not int"),
}


def pressed(**how: Any) -> Any:
    return tp.press(net(), tp.plan(net(), scheme="channel_svd", ranks=2), **how)


CALLS: dict[str, Callable[[Any, Path], Any]] = {
    "compress": lambda data, _: tp.compress(net(), "params=60%", data),
    "press": lambda data, _: pressed(calibration=data),
    "Calibration": lambda data, _: tp.Calibration.collect(net(), data),
    "LossCurvature": lambda data, _: tp.LossCurvature.collect(net(), data),
    "sensitivity": lambda data, _: tp.sensitivity(net(), data),
    "finetune": lambda data, _: tp.finetune(net(), data, epochs=1),
    "validation": lambda data, _: tp.finetune(net(), [(X, Y)], epochs=1, validation=data),
    "encode": lambda data, folder: tp.encode(net(), folder / "a.tpz", size=300, calibration=data),
    "evaluate": lambda data, _: evaluate(net(), data),
    "report": lambda data, _: tp.report(net(), pressed(), batches=data),
    "compare": lambda data, _: tp.compare(net(), {"a": pressed()}, batches=data),
    "fidelity": lambda data, _: tp.fidelity(net(), pressed(), data),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("data", DATA)
def test_data_that_do_not_fit_say_what_was_expected(tmp_path: Path, call: str, data: str) -> None:
    make, message = DATA[data]
    with pytest.raises(InvalidArgumentError, match=message):
        CALLS[call](make(), tmp_path)


@pytest.mark.parametrize("call", ["compress", "press", "report", "compare", "fidelity"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_data_that_are_not_finite_are_named(tmp_path: Path, call: str, value: float) -> None:
    with pytest.raises(InvalidArgumentError, match=r"(?i)NaN|infinit|not finite"):
        CALLS[call]([(X * value, Y)], tmp_path)


@pytest.mark.parametrize("call", ["finetune", "evaluate"])
def test_labels_beyond_the_classes_are_named(tmp_path: Path, call: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"classes from 0 to 3, .* got 99 to 99"):
        CALLS[call]([(X, Y + 99)], tmp_path)


def with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


@pytest.mark.parametrize(("make", "message"), [
    (lambda: tp.report(net(), with_nan(pressed())), "layer '0': its '0.weight' has NaN"),
    (lambda: tp.report(with_nan(net()), pressed()), "layer '0': its weight has NaN"),
    (lambda: tp.report(torch.jit.script(net()), pressed()), "the model is compiled by torch.jit"),
    (lambda: tp.report(net(), torch.jit.script(pressed())), "the model is compiled by torch.jit"),
    (lambda: tp.compare(net(), {"a": "pressed"}), "expected a torch.nn.Module, got str"),
    (lambda: tp.compare(net(), {"a": net()}, example_inputs=X[:, :5]), "fails on the example"),
    (lambda: tp.report(net(), "pressed"), "expected a torch.nn.Module, got str"),
    (lambda: tp.compress(torch.jit.script(net()), "params=60%"), "compiled by torch.jit"),
])  # fmt: skip
def test_models_that_cannot_be_compared_are_named(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InvalidArgumentError, match=message):
        make()


@pytest.mark.parametrize(
    "content", [{}, [], 3, {"quant_method": None}, {"quant_method": "tensorpress"}]
)
def test_a_config_without_a_plan_is_no_pressed_folder(tmp_path: Path, content: Any) -> None:
    tp.save_checkpoint(pressed(), tmp_path / "a")
    (tmp_path / "a" / "plan.json").unlink()
    (tmp_path / "a" / "config.json").write_text(json.dumps({"quantization_config": content}))
    with pytest.raises(DataNotFoundError, match=r"has no plan\.json"):
        tp.load_checkpoint(tmp_path / "a", net())


@pytest.mark.parametrize("command", [
    "compress --budget params=50% --out OUT", "press --ranks 4 --scheme channel_svd --out OUT",
    "encode --size 9000 --out OUT/a.tpz", "eval",
])  # fmt: skip
def test_commands_say_what_was_expected(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    data, out = tmp_path / "data.npz", tmp_path / "out"
    np.savez(data, x=np.ones((64, 7), np.float32), y=np.zeros(64, np.int64))
    name, *options = command.replace("OUT", str(out)).split()
    words = [name, "--model", "lenet300100", "--data", str(data), *options]
    outcome = call_command(monkeypatch, capsys, *words)
    assert outcome.code == 1
    assert "fails on the input 1x7" in outcome.err
    assert "Traceback" not in outcome.err
