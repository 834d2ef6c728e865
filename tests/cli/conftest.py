import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from command_line import Outcome, call

FACTORIES = """
import torch
from torch import nn

def net():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))

def any_size():
    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 4, 1))

def only_dry():
    if not torch.empty(1).is_meta:
        raise OSError("it was loaded")
    return net()

def looking():
    model = net()
    return model if model[0].weight.detach().sum().item() else None

def tokens():
    return nn.Sequential(nn.Embedding(50, 24), nn.Linear(24, 24))

def nothing():
    return None
"""


@pytest.fixture
def shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Outcome]:
    """Calls the command line in a folder with a module of factories."""
    (tmp_path / "small_nets.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORPRESS_DATA", raising=False)
    torch.manual_seed(0)
    return partial(call, monkeypatch, capsys)


@pytest.fixture
def run_json(shell: Callable[..., Outcome]) -> Callable[..., Any]:
    """Calls a command that must succeed, and returns its JSON."""

    def run_json(*words: object) -> Any:
        outcome = shell(*words, "--json")
        assert outcome.code == 0, outcome.err
        return json.loads(outcome.out)

    return run_json


@pytest.fixture
def fails(shell: Callable[..., Outcome]) -> Callable[..., str]:
    """Calls a command that must fail with a message and nothing else, and returns it."""

    def fails(*words: object) -> str:
        outcome = shell(*words)
        assert outcome.code == 1
        assert outcome.out == ""
        assert "Traceback" not in outcome.err
        [message] = [line for line in outcome.err.splitlines() if line.startswith("error: ")]
        return message

    return fails


@pytest.fixture
def dense() -> nn.Module:
    """What the factory ``net`` of the module makes, of one seed."""
    namespace: dict[str, Any] = {}
    exec(FACTORIES, namespace)
    torch.manual_seed(0)
    model = namespace["net"]()
    assert isinstance(model, nn.Module)
    return model
