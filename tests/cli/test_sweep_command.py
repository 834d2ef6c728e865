import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from command_line import Outcome
from tensorpress.utils.jobs import JobFolder

RECIPE = """
title: LeNet-300-100 on digits
network: lenet300100
data: {name: digits, validation: 200, batch_size: 200}
dense: {epochs: 1, lr: 0.003}
press: {scheme: channel_svd, ranks: 4}
quantize: {step: 0.5}
"""


@pytest.fixture
def sweep_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A sweep whose runs take no time: a file's bytes are 100 for each rank."""

    def run_task(task: Any, *_: object) -> dict[str, float]:
        rank = task.recipe.press.ranks
        return {"bytes": 100 * rank + 3, "validation_error": 50 / rank}

    @contextmanager
    def this_process(processes: int, _: object) -> Iterator[None]:
        assert processes in (2, 3)
        yield None

    monkeypatch.setattr("tensorpress.sweep.trials._run_task", run_task)
    monkeypatch.setattr("tensorpress.sweep.trials._train_part", lambda *_: None)
    monkeypatch.setattr(sys.modules["tensorpress.sweep.sweep"], "open_executor", this_process)
    monkeypatch.setattr(sys.modules["tensorpress.sweep.sweep"], "_test_error", lambda *_: 7.0)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "sweep.yaml").write_text("recipe: recipe.yaml\nvary: {press.ranks: [2, 8]}\n")
    return "sweep.yaml"


def test_a_sweep_is_run_and_shown(
    shell: Callable[..., Outcome], sweep_file: str, tmp_path: Path
) -> None:
    outcome = shell("sweep", sweep_file, "--out", "out", "--pick", "bytes<=300")
    assert outcome.code == 0, outcome.err
    assert "◆  ranks=2" in outcome.out
    assert "803" not in outcome.out.split("pick")[1].split("page")[0]
    assert (tmp_path / "out" / "sweep.html").as_uri() in outcome.out


def test_seeds_picks_and_processes_are_passed_on(
    run_json: Callable[..., Any], sweep_file: str, tmp_path: Path
) -> None:
    words = ["--seeds", "0, 3", "--processes", 3, "--pick", "error<=10", "--pick", "bytes<=1"]
    result = run_json("sweep", sweep_file, "--out", "out", *words)
    assert result["seeds"] == [0, 3]
    assert [variant["bytes"] for variant in result["variants"]] == [203, 803]
    large, none = result["picks"]
    assert (large["variant"], large["test_error"]["mean"]) == ("ranks=8", 7.0)
    assert none["variant"] is None
    assert json.loads((tmp_path / "out" / "sweep.json").read_text()) == result


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--seeds", "0,x"], "--seeds: expected numbers"),
        (["--seeds", "-1"], "--seeds: expected numbers"),
        (["--seeds", "4294967296"], "--seeds: expected numbers"),
        (["--seeds", "1,1"], "expected at least one seed"),
        (["--pick", "bytes=3"], "a pick must be bytes<=NUMBER"),
    ],
    ids=str,
)
def test_mistakes_in_options(
    fails: Callable[..., str],
    sweep_file: str,
    tmp_path: Path,
    words: list[str],
    message: str,
) -> None:
    assert message in fails("sweep", sweep_file, "--out", "out", *words)
    assert not (tmp_path / "out").exists()


def test_mistakes_in_the_file(fails: Callable[..., str], sweep_file: str, tmp_path: Path) -> None:
    assert "no sweep at none.yaml" in fails("sweep", "none.yaml", "--out", "out")
    (tmp_path / sweep_file).write_text("recipe: recipe.yaml\nvary: {press.rank: [2]}\n")
    assert "variant rank=2" in fails("sweep", sweep_file, "--out", "out")


def test_a_folder_of_something_else_is_refused(
    fails: Callable[..., str], sweep_file: str, tmp_path: Path
) -> None:
    JobFolder(tmp_path / "out" / "jobs", {"task": "other"})
    assert "results of other settings" in fails("sweep", sweep_file, "--out", "out")
