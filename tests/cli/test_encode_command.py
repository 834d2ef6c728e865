import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tensorpress as tp
from command_line import Outcome
from tensorpress.codec.read_budget import MAX_BYTES
from tensorpress.data.splits import load_splits
from tensorpress.models.zoo import build, network, save_weights

Shell = Callable[..., Outcome]
RunJson = Callable[..., Any]
Fails = Callable[..., str]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_file({"w": torch.randn(40, 30), "b": torch.rand(40)}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def test_there_and_back(run_json: RunJson, weights: Path, tmp_path: Path) -> None:
    done = run_json("encode", "m.safetensors", "--bits", "5")
    assert done["file"] == "m.tpz"
    assert done["bytes"] == (tmp_path / "m.tpz").stat().st_size
    assert done["bits_per_value"] <= 5
    back = run_json("decode", "m.tpz", "--out", "back.safetensors")
    assert (back["tensors"], back["values"]) == (2, 1240)
    dense, decoded = load_file(weights), load_file(tmp_path / "back.safetensors")
    lost = (decoded["w"] - dense["w"]).norm() / dense["w"].norm()
    assert float(lost) == pytest.approx(done["error"], rel=1e-3)


def test_a_disk_that_is_full_is_an_error_and_leaves_nothing(
    run_json: RunJson, fails: Fails, weights: Path, tmp_path: Path
) -> None:
    run_json("encode", "m.safetensors", "--bits", "5")
    before, limits = sorted(tmp_path.iterdir()), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        error = fails("decode", "m.tpz", "--out", "back.safetensors")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "back.safetensors cannot be written: File too large" in error
    assert sorted(tmp_path.iterdir()) == before


def test_tables_for_people(shell: Shell, weights: Path) -> None:
    outcome = shell("encode", "m.safetensors", "--size", "0.7kB", "--out", "small.tpz")
    assert outcome.code == 0
    assert "40×30" in outcome.out or "40x30" in outcome.out
    assert "small.tpz: " in outcome.out
    assert "2 tensors, 1,240 values" in shell("decode", "small.tpz").out


def test_a_network_of_the_zoo_loads_without_a_model(run_json: RunJson, tmp_path: Path) -> None:
    net = build("lenet300100")
    with torch.no_grad():
        net.ip1.weight.zero_()  # its coding would take a second
    save_weights(net, tmp_path / "w.safetensors")
    model = ("--model", "lenet300100", "--weights", "w.safetensors")
    run_json("encode", *model, "--target-error", "0.2", "--out", "l.tpz")
    assert type(tp.load(tmp_path / "l.tpz")).__name__ == "LeNet300100"


def test_calibration_by_the_images_of_a_data_set(run_json: RunJson, tmp_path: Path) -> None:
    net = build("lenet5")
    with torch.no_grad():
        net.ip1.weight[20:].zero_()  # its coding would take seconds
    save_weights(net, tmp_path / "w.safetensors")
    model = ("--model", "lenet5", "--weights", "w.safetensors", "--bits", "1.5")
    run_json("encode", *model, "--out", "blind.tpz")
    run_json("encode", *model, "--data", "digits", "--out", "seen.tpz")
    images = network("lenet5").preprocess(load_splits(network("lenet5"), "digits").test.images)
    expected = net(images)
    blind, seen = (
        (tp.load(tmp_path / f"{name}.tpz")(images) - expected).square().mean().item()
        for name in ("blind", "seen")
    )
    assert seen < 0.7 * blind


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("encode", "m.safetensors"), "give exactly one budget"),
        (
            ("encode", "m.safetensors", "--bits", "3", "--data", "digits"),
            "--data needs a model",
        ),
        (
            ("encode", "--model", "lenet5", "--bits", "3", "--out", "a.tpz", "--data", "x"),
            "unknown dataset 'x'",
        ),
        (
            ("encode", "m.safetensors", "--size", "many"),
            "--size: expected a size such as 1500, 200kB or 1.5MiB, got 'many'",
        ),
        (("encode", "m.safetensors", "--size", "60"), "too few"),
        (("encode", "nothing.safetensors", "--bits", "2"), "no such file"),
        (("encode", "m.safetensors", "--model", "lenet5", "--bits", "2"), "for a model use"),
        (("encode", "--model", "lenet5", "--bits", "2"), "--out"),
        (("encode", "--bits", "2"), "by --model"),
        (("decode", "m.safetensors"), "not a .tpz file"),
        (("decode", "nothing.tpz"), "no such file"),
    ],
)
def test_what_cannot_be_done(
    fails: Fails, weights: Path, words: tuple[str, ...], message: str
) -> None:
    assert message in fails(*words)


def test_a_file_that_is_no_safetensors(fails: Fails, tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"no")
    assert "not a complete safetensors" in fails("encode", "x.safetensors", "--bits", "2")


def test_lossless_files_and_folders(run_json: RunJson, weights: Path, tmp_path: Path) -> None:
    run_json("encode", "m.safetensors", "--lossless")
    run_json("decode", "m.tpz", "--out", "back.safetensors")
    (tmp_path / "folder").mkdir()
    weights.rename(tmp_path / "folder" / "model.safetensors")
    done = run_json("encode", "folder", "--lossless", "--out", "small")
    assert done["bytes"] > 0
    run_json("decode", "small", "--out", "dense")
    expected = load_file(tmp_path / "folder" / "model.safetensors")
    for file in ("back.safetensors", "dense/model.safetensors"):
        result = load_file(tmp_path / file)
        assert all(torch.equal(result[name], tensor) for name, tensor in expected.items())


def test_folders_are_coded_to_bits_alone(fails: Fails, weights: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    weights.rename(tmp_path / "folder" / "model.safetensors")
    assert "by --bits or --lossless" in fails("encode", "folder", "--size", "1kB", "--out", "x")
    assert "by --out" in fails("decode", "folder")


def test_the_memory_of_reading_has_a_ceiling(
    run_json: RunJson, fails: Fails, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MAX_BYTES, "1000")  # so that it is as before after the test
    run_json("encode", "m.safetensors", "--bits", "5")
    assert "would take more than 1,000 in memory" in fails("decode", "m.tpz")
    monkeypatch.setenv(MAX_BYTES, "many")
    assert f"{MAX_BYTES} must be a number of bytes, not 'many'" in fails("decode", "m.tpz")
    assert "would take more than 99" in fails("--max-bytes", "99", "decode", "m.tpz")
    run_json("--max-bytes", "100000", "decode", "m.tpz", "--out", "back.safetensors")
