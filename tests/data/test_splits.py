from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tensorpress.data import DATASETS, load
from tensorpress.data.splits import find_weights, load_splits
from tensorpress.errors import DataNotFoundError, InvalidArgumentError
from tensorpress.models.zoo import network


def test_images_come_at_the_size_of_the_network() -> None:
    splits = load_splits(network("fc1024"), "digits", validation=150)
    assert splits.test.images.shape[1:] == (1, 32, 32)
    assert len(splits.validation) == 150


def test_missing_data_says_what_to_download_and_where_to_put_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TENSORPRESS_DATA", raising=False)
    with pytest.raises(DataNotFoundError) as caught:
        load_splits(network("lenet5"), "mnist")
    for part in ("train-images-idx3-ubyte.gz", "https://", "TENSORPRESS_DATA", "'mnist'"):
        assert part in str(caught.value)
    monkeypatch.setenv("TENSORPRESS_DATA", str(tmp_path))
    with pytest.raises(DataNotFoundError) as caught:
        load_splits(network("resnet20"), "cifar10")
    for part in ("cifar-10-binary.tar.gz", "https://", str(tmp_path)):
        assert part in str(caught.value)


def test_a_data_set_of_another_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgumentError, match=r"'digits' .1×8×8.*resnet20 .3×32×32"):
        load_splits(network("resnet20"), "digits")
    letters = replace(DATASETS["mnist"], name="letters", classes=26)
    monkeypatch.setattr("tensorpress.data.splits.DATASETS", {**DATASETS, "letters": letters})
    with pytest.raises(InvalidArgumentError, match=r"'letters' .*classes: 26.*lenet5.*classes: 10"):
        load_splits(network("lenet5"), "letters")
    with pytest.raises(InvalidArgumentError, match=r"'moving-digits' .1×8×16×16.*lenet5 .1×28×28"):
        load_splits(network("lenet5"), "moving-digits")


def test_weights_are_looked_for_here_and_in_the_data_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, data, root = (tmp_path / name for name in ("here", "data", "root"))
    for folder in (here, data, root):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.delenv("TENSORPRESS_DATA", raising=False)
    name = Path("net.safetensors")
    with pytest.raises(DataNotFoundError) as caught:
        find_weights(name, None)
    assert str(here / name) in str(caught.value)
    assert "TENSORPRESS_DATA" in str(caught.value)
    monkeypatch.setenv("TENSORPRESS_DATA", str(data))
    with pytest.raises(DataNotFoundError) as caught:
        find_weights(name, None)
    assert f"{here / name} or {data / name}: put a safetensors file" in str(caught.value)
    (root / name).touch()
    assert find_weights(name, root) == root / name
    (data / name).touch()
    assert find_weights(name, None) == data / name
    (here / name).touch()
    assert find_weights(name, None).resolve() == here / name
    assert find_weights(root / name, None) == root / name


@pytest.mark.parametrize("parts", [("train", "test"), ("",)])
def test_pixels_of_a_file_at_the_size_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    digits = load("digits")
    arrays = {}
    for part in parts:
        images = digits.test if part == "test" else digits.train
        end = f"_{part}" if part else ""
        arrays |= {f"x{end}": images.images.numpy()[:, 0], f"y{end}": images.labels.numpy()}
    np.savez(tmp_path / "own.npz", **arrays)
    splits = load_splits(network("lenet5"), "own.npz", validation=100)
    counts = [len(part) for part in (splits.train, splits.validation, splits.test)]
    assert counts == ([1101, 100, 596] if "test" in parts else [861, 100, 240])
    if "test" in parts:
        expected = load_splits(network("lenet5"), "digits", validation=100)
        assert torch.equal(splits.validation.images, expected.validation.images)
        assert torch.equal(splits.test.labels, expected.test.labels)
    every = torch.cat([splits.train.images, splits.validation.images, splits.test.images])
    assert every.shape[1:] == (1, 28, 28)


def test_data_that_a_network_cannot_be_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pixels, labels = np.zeros((20, 5, 5), np.uint8), np.arange(20)
    for arrays, message in (
        ({"x": pixels, "y": labels}, r"labels from 0 to 1\d, but lenet5 has 10 outputs"),
        ({"x": pixels}, "with label None: expected labelled images"),
        ({"x": pixels.astype(np.float32), "y": labels}, "yields a Tensor .* expected labelled"),
    ):
        np.savez(tmp_path / "own.npz", **arrays)
        with pytest.raises(InvalidArgumentError, match=message):
            load_splits(network("lenet5"), "own.npz")
    with pytest.raises(DataNotFoundError, match="no file or folder own/train"):
        load_splits(network("lenet5"), "own/train")
