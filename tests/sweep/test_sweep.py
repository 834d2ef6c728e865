import json
import logging
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import psutil
import pytest
import torch
from rich.console import Console
from tiny_sweeps import RECIPE, sweep_text

from tensorpress.codec.save_load import load
from tensorpress.data import batches
from tensorpress.data.splits import load_splits
from tensorpress.errors import DivergedError, InvalidArgumentError, TensorPressError
from tensorpress.models.zoo import network
from tensorpress.runs.run import run
from tensorpress.sweep import Pick, read_sweep, sweep, trials
from tensorpress.sweep.page import frontier_figure
from tensorpress.sweep.table import pick_table, variant_table
from tensorpress.train import evaluate

SEEDS = (0, 5)


def swept(out: Path, *picks: str, seeds: tuple[int, ...] = SEEDS, **sections: Any) -> Any:
    path = out.with_suffix(".yaml")
    path.write_text(sweep_text(**sections))
    rules = list(map(Pick.parse, picks))
    return sweep(*read_sweep(path), out, seeds=seeds, picks=rules, processes=2)


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A sweep of two variants and two seeds in two processes, and what it found."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    content = swept(
        out,
        "bytes<=2000",
        "error<=100",
        "error<=0",
        references=[{"name": "of <others>", "bytes": 1500, "error": 40.0}],
    )
    return out, content


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do the work of a sweep's processes in this one, without the page of every run."""

    @contextmanager
    def this_process(*_: object) -> Iterator[None]:
        yield None

    monkeypatch.setattr(sys.modules["tensorpress.sweep.sweep"], "open_executor", this_process)
    monkeypatch.setattr("tensorpress.runs.run.write_page", lambda *_: None)


def test_every_variant_is_run_with_every_seed(done: tuple[Path, dict[str, Any]]) -> None:
    out, content = done
    assert [variant["name"] for variant in content["variants"]] == ["ranks=2", "ranks=8"]
    assert content["seeds"] == list(SEEDS)
    for variant in content["variants"]:
        runs = variant["runs"]
        assert [one["seed"] for one in runs] == list(SEEDS)
        for one in runs:
            metrics = json.loads((out / one["folder"] / "metrics.json").read_text())
            assert metrics["seed"] == one["seed"]
            assert metrics["recipe"]["press"]["ranks"] == variant["settings"]["press.ranks"]
            assert metrics["errors_on"] == "validation"
            assert metrics["file"]["bytes"] == one["bytes"]
            assert metrics["file"]["validation_error"] == one["validation_error"]
            assert "1 threads" in metrics["device"]
        assert variant["bytes"] == max(one["bytes"] for one in runs)
        assert variant["validation_error"] == mean(one["validation_error"] for one in runs)
    assert json.loads((out / "sweep.json").read_text()) == content


def test_a_run_of_a_sweep_is_the_run_of_its_recipe(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, content = done
    first = read_sweep(out.with_suffix(".yaml"))[1][0]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = run(first.recipe, tmp_path / "alone", seed=5)
    torch.set_num_threads(threads)
    folder = out / content["variants"][0]["runs"][1]["folder"]
    assert (alone.folder / "model.tpz").read_bytes() == (folder / "model.tpz").read_bytes()


def test_what_a_killed_sweep_was_writing_is_removed_at_the_next_start(
    done: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    out, content = done
    folder = shutil.copytree(out, tmp_path / "out")
    before = sorted(folder.rglob("*"))
    one, common = content["variants"][0]["runs"][0]["folder"], next(folder.glob("common/*/*.pt"))
    for path in (common, folder / one / "model.tpz", folder / "jobs" / "a.json"):
        dead = path.with_name(f".{path.name}.0123abcd.{platform.node()}@99999999.tmp")
        dead.write_bytes(b"half")
    swept(folder)
    assert sorted(folder.rglob("*")) == before


def test_picked_files_are_tested(done: tuple[Path, dict[str, Any]]) -> None:
    out, content = done
    small, large = content["variants"]
    within, best, none = content["picks"]
    assert small["bytes"] <= 2000 < large["bytes"]
    assert (within["rule"], within["variant"]) == ("bytes<=2000", "ranks=2")
    assert (best["variant"], best["bytes"]) == ("ranks=2", small["bytes"])
    assert none == {"rule": "error<=0", "variant": None}
    images = load_splits(network("lenet300100"), "digits", None, 200).test
    loader = batches(images, network("lenet300100").preprocess, 100, shuffle=False)
    results = [evaluate(load(out / one["folder"] / "model.tpz"), loader) for one in small["runs"]]
    errors = [float(result.error) for result in results]
    assert within["test_error"] == {"mean": mean(errors), "sd": stdev(errors), "runs": errors}


def test_the_page_has_everything_and_loads_nothing(done: tuple[Path, dict[str, Any]]) -> None:
    out, content = done
    page = (out / "sweep.html").read_text(encoding="utf-8")
    for variant in content["variants"]:
        assert f"{variant['bytes']:,}" in page
        assert all(one["folder"] in page for one in variant["runs"])
    assert "of &lt;others&gt;" in page
    assert "of <others>" not in page
    assert "default-src 'none'" in page
    assert "<script" not in page
    for variant in content["variants"]:
        numbers = f"{variant['bytes']:,} bytes, {variant['validation_error']:.2f} %"
        assert f"<title>{variant['name']}: {numbers}</title>" in page
    axes = frontier_figure(content, 340).axes[0]
    assert axes.get_xscale() == "log"
    assert axes.get_legend_handles_labels()[1][-1] == "others"
    [steps] = [line for line in axes.lines if line.get_drawstyle() == "steps-post"]
    best = [variant["bytes"] for variant in content["variants"] if variant["frontier"]]
    assert list(steps.get_xdata()) == best  # type: ignore[arg-type]


def test_tables_show_the_frontier_and_the_picks(
    done: tuple[Path, dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    _, content = done
    console = Console(width=80)
    console.print(variant_table(content), pick_table(content))
    said = capsys.readouterr().out
    for variant in content["variants"]:
        [line] = [x for x in said.splitlines() if variant["name"] in x and "<=" not in x]
        assert ("◆" in line) == variant["frontier"]
        assert f"{variant['bytes']:,}" in line
    test = content["picks"][0]["test_error"]
    assert f"{test['mean']:.2f} ± {test['sd']:.2f}" in said
    assert "no variant" in said


def test_what_was_done_is_not_done_again_and_more_can_be_asked_for(
    done: tuple[Path, dict[str, Any]], here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, before = done
    ran = []
    whole = trials.run  # type: ignore[attr-defined]

    def counted(recipe: Any, folder: Path, **options: Any) -> Any:
        ran.append((recipe.press.ranks, options["seed"]))
        return whole(recipe, folder, **options)

    monkeypatch.setattr("tensorpress.sweep.trials.run", counted)
    again = swept(out)
    assert ran == []
    assert again["variants"] == before["variants"]
    more = swept(out, vary={"press.ranks": [2, 4, 8]}, seeds=(5,))
    assert ran == [(4, 5)]
    assert [variant["name"] for variant in more["variants"]] == ["ranks=2", "ranks=4", "ranks=8"]
    assert more["variants"][0]["runs"] == before["variants"][0]["runs"][1:]


def test_what_runs_have_in_common_is_trained_once(
    tmp_path: Path, here: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="tensorpress.train"):
        content = swept(tmp_path / "out", seeds=(0,), vary={"quantize.step": [0.25, 0.5, 1]})
    assert caplog.text.count("epoch 1: train") == 1
    assert len({variant["bytes"] for variant in content["variants"]}) == 3


def test_the_test_images_are_not_looked_at_without_a_pick(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tensorpress.runs.training.Phases.test_error", None)
    monkeypatch.setattr(sys.modules["tensorpress.sweep.sweep"], "_test_error", None)
    assert swept(tmp_path / "out", seeds=(0,))["picks"] == []


def test_a_variant_that_diverges_is_told_and_not_compared(
    tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trials.run  # type: ignore[attr-defined]

    def diverging(recipe: Any, folder: Path, **options: Any) -> Any:
        if recipe.press.ranks == 2:
            raise DivergedError("the loss is nan")
        return whole(recipe, folder, **options)

    monkeypatch.setattr("tensorpress.sweep.trials.run", diverging)
    content = swept(tmp_path / "out", "bytes<=100000", seeds=(0,))
    diverged, other = content["variants"]
    assert (diverged["bytes"], diverged["frontier"], other["frontier"]) == (None, False, True)
    assert content["picks"][0]["variant"] == "ranks=8"
    console = Console(width=80)
    with console.capture() as said:
        console.print(variant_table(content))
    assert "diverged" in said.get()
    assert "<td>diverged</td>" in (tmp_path / "out" / "sweep.html").read_text(encoding="utf-8")


def test_a_run_that_fails_ends_the_sweep_and_names_the_variant(tmp_path: Path) -> None:
    data = {"name": "mnist", "root": str(tmp_path / "nowhere"), "validation": 200}
    with pytest.raises(TensorPressError, match=r"ranks=2 data=.*, seed 0: .*nowhere"):
        swept(tmp_path / "out", seeds=(0,), vary={"press.ranks": [2], "data": [data]})


@pytest.mark.parametrize(("seeds", "processes"), [((), 1), ((1, 1), 1), ((0,), 0)])
def test_seeds_and_processes_are_checked(
    tmp_path: Path, seeds: tuple[int, ...], processes: int
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(sweep_text())
    with pytest.raises(InvalidArgumentError, match="at least"):
        sweep(*read_sweep(path), tmp_path / "out", seeds=seeds, processes=processes)
    assert not (tmp_path / "out").exists()


SCRIPT = """
from tensorpress.sweep import read_sweep, sweep
if __name__ == "__main__":
    sweep(*read_sweep("sweep.yaml"), "out", processes=2)
"""


def test_a_killed_sweep_takes_its_processes_along_and_goes_on(
    tmp_path: Path, here: None, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = RECIPE | {"dense": {"epochs": 40, "lr": 0.003}}
    (tmp_path / "sweep.yaml").write_text(sweep_text(recipe=recipe, vary={"press.ranks": [2]}))
    (tmp_path / "script.py").write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path)
    out, deadline = tmp_path / "out", time.monotonic() + 120
    while not list(out.glob("**/dense.pt")) and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.02)
    workers = psutil.Process(process.pid).children()
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert psutil.wait_procs(workers, timeout=30)[1] == []
    assert not list(out.glob("runs/*/model.tpz"))
    with caplog.at_level(logging.INFO, logger="tensorpress.train"):
        content = sweep(*read_sweep(tmp_path / "sweep.yaml"), out)
    epochs = [int(n) for n in re.findall(r"epoch (\d+): train", caplog.text)]
    assert 1 < epochs[0] <= epochs[-1] == 40
    assert content["variants"][0]["bytes"] > 0
