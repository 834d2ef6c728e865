"""A disk that is full is our error, which names the path."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from readers import net
from torch import nn

import tensorpress as tp
from tensorpress.errors import InvalidArgumentError
from tensorpress.runs.recipe import EXAMPLE, parse_recipe
from tensorpress.runs.run import run

X, Y = torch.ones(4, 6), torch.zeros(4).long()


def pressed() -> nn.Module:
    return tp.press(net(), tp.plan(net(), scheme="channel_svd", ranks=2))


FILES: dict[str, Callable[[Path], Any]] = {
    "save": lambda out: tp.save(net(), out / "a.tpz"),
    "plan": lambda out: tp.plan(net(), scheme="channel_svd", ranks=2).save(out / "a.json"),
    "report": lambda out: tp.report(net(), pressed(), out / "a.html"),
    "calibration": lambda out: tp.Calibration.collect(net(), [X]).save(out / "a.safetensors"),
}
FOLDERS: dict[str, Callable[[Path], Any]] = {
    "save_checkpoint": lambda out: tp.save_checkpoint(pressed(), out / "a"),
    "finetune": lambda out: tp.finetune(net(), [(X, Y)], epochs=1, checkpoint=out / "a" / "b.pt"),
    "run": lambda out: run(parse_recipe(EXAMPLE), out / "a"),
}


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_full_disk_is_an_error_that_names_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(os, "fsync" if name in FILES else "mkdir", full)
    with pytest.raises(InvalidArgumentError, match="No space left on device") as caught:
        (FILES | FOLDERS)[name](tmp_path)
    assert str(tmp_path) in str(caught.value)
    monkeypatch.undo()
    assert not list(tmp_path.iterdir())
