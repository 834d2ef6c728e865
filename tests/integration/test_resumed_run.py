"""The same recipe and seed give the same file, whatever happens on the way."""

import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_runs import TINY, recipe

from tensorpress.errors import InvalidArgumentError
from tensorpress.press.press import press
from tensorpress.runs.recipe import parse_recipe
from tensorpress.runs.run import RunResult, run, train_common
from tensorpress.train.epoch import EpochRunner

pytestmark = pytest.mark.usefixtures("no_page")


class StoppedError(Exception):
    """What stops a run in these tests."""


def test_the_same_seed_gives_the_same_file_anywhere(tmp_path: Path, finished: RunResult) -> None:
    run(recipe(), tmp_path / "a" / "deep" / "folder", seed=3)
    again = tmp_path / "a" / "deep" / "folder" / "model.tpz"
    assert again.read_bytes() == (finished.folder / "model.tpz").read_bytes()
    other = run(recipe(), tmp_path / "b", seed=4)
    assert (other.folder / "model.tpz").read_bytes() != again.read_bytes()


def test_a_finished_run_is_not_trained_again(
    finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    before = (finished.folder / "model.tpz").read_bytes()
    page = (finished.folder / "report.html").read_bytes()
    metrics = (finished.folder / "metrics.json").read_bytes()
    monkeypatch.setattr(EpochRunner, "run", fail)
    monkeypatch.setattr("tensorpress.runs.run.perf_counter", lambda: 0.0)
    again = run(recipe(), finished.folder, seed=3)
    assert (finished.folder / "model.tpz").read_bytes() == before
    for key in set(finished.metrics) - {"latency", "seconds"}:
        assert again.metrics[key] == finished.metrics[key]
    # This run takes no time by its clock: what counts is the training that was not repeated.
    assert again.metrics["seconds"] > 0
    (finished.folder / "report.html").write_bytes(page)
    (finished.folder / "metrics.json").write_bytes(metrics)


@pytest.mark.parametrize("epochs", [3, 6, 8])  # of the dense network, pressed, quantized
def test_a_run_that_fails_in_any_epoch_goes_on_to_the_same_file(
    tmp_path: Path, finished: RunResult, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    done = 0
    whole = EpochRunner.run

    def interrupted(self: EpochRunner, *args: object) -> object:
        nonlocal done
        done += 1
        metrics = whole(self, *args)  # type: ignore[arg-type]
        if done > epochs:  # after an epoch's steps, before its checkpoint
            raise StoppedError
        return metrics

    with monkeypatch.context() as patched:
        patched.setattr(EpochRunner, "run", interrupted)
        with pytest.raises(StoppedError):
            run(recipe(), tmp_path / "run", seed=3)
    assert not (tmp_path / "run" / "model.tpz").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()
    result = run(recipe(), tmp_path / "run", seed=3)
    assert (tmp_path / "run" / "model.tpz").read_bytes() == (
        finished.folder / "model.tpz"
    ).read_bytes()
    assert result.metrics["file"] == finished.metrics["file"]
    assert result.content.curves == finished.content.curves


@pytest.mark.parametrize("step", ["save", "write_page"])
def test_a_run_that_fails_at_the_end_goes_on(
    tmp_path: Path, finished: RunResult, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoppedError

    with monkeypatch.context() as patched:
        patched.setattr(f"tensorpress.runs.run.{step}", fail)
        with pytest.raises(StoppedError):
            run(recipe(), tmp_path / "run", seed=3)
    assert (tmp_path / "run" / "metrics.json").exists() == (step == "write_page")
    run(recipe(), tmp_path / "run", seed=3)
    expected = (finished.folder / "model.tpz").read_bytes()
    assert (tmp_path / "run" / "model.tpz").read_bytes() == expected


def test_images_are_fitted_to_once(
    tmp_path: Path, finished: RunResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where what runs have in common is done before them."""
    calls = []

    def counted(*given: object, **how: object) -> object:
        calls.append(how)
        return press(*given, **how)  # type: ignore[arg-type]

    monkeypatch.setattr("tensorpress.runs.training.press", counted)
    calibrated = recipe(press={"scheme": "channel_svd", "ranks": 8, "calibrate": 128})
    common = tmp_path / "common"
    train_common(calibrated, common, "train", 3)
    alone = run(calibrated, tmp_path / "alone", seed=3)
    assert len(calls) == 2
    monkeypatch.setattr(
        "tensorpress.runs.training.plan_recipe", None
    )  # the plan is that of the others
    after = run(calibrated, tmp_path / "after", seed=3, common=common)
    run(calibrated, tmp_path / "alone", seed=3)
    assert len(calls) == 2
    assert after.metrics["file"] == alone.metrics["file"]
    assert after.metrics["pressed"] == alone.metrics["pressed"]


LONG = TINY.replace("train: {epochs: 2,", "train: {epochs: 12,")


def test_a_killed_run_goes_on_to_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(LONG)
    folder = tmp_path / "run"
    command = "from tensorpress.cli import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", command, "run", "recipe.yaml", "--out", "run"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    checkpoint = folder / "checkpoints" / "train.pt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert checkpoint.exists()
    assert not (folder / "model.tpz").exists()
    resumed = run(parse_recipe(LONG), folder)
    whole = run(parse_recipe(LONG), tmp_path / "whole")
    assert (folder / "model.tpz").read_bytes() == (whole.folder / "model.tpz").read_bytes()
    assert resumed.metrics["file"] == whole.metrics["file"]


def test_what_a_killed_run_was_writing_is_removed_at_the_next_start(
    tmp_path: Path, finished: RunResult
) -> None:
    folder = shutil.copytree(finished.folder, tmp_path / "run")
    before = sorted(folder.rglob("*"))
    for name in ("checkpoints/dense.pt", "plan.yaml", "model.tpz", "report.html", "metrics.json"):
        path = folder / name
        dead = path.with_name(f".{path.name}.0123abcd.{platform.node()}@99999999.tmp")
        dead.write_bytes(b"half")
    run(recipe(), folder, seed=3)
    assert sorted(folder.rglob("*")) == before


def test_another_recipe_or_seed_is_refused(finished: RunResult) -> None:
    before = (finished.folder / "recipe.yaml").read_text()
    other = recipe(title="Another")
    for given, seed in ((recipe(), 4), (other, 3)):
        with pytest.raises(InvalidArgumentError, match="another recipe or seed") as caught:
            run(given, finished.folder, seed=seed)
        assert str(finished.folder) in str(caught.value)
    assert (finished.folder / "recipe.yaml").read_text() == before


def test_a_run_that_has_not_begun_gives_its_folder_up(tmp_path: Path) -> None:
    wrong = recipe(
        press={"scheme": "ada_tucker", "overrides": {"ip9": {"modes": [20, 15], "ranks": 3}}}
    )
    with pytest.raises(InvalidArgumentError, match="'ip9'"):
        run(wrong, tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()
    run(recipe(train=None, quantize={"step": 0.1}), tmp_path / "run")
