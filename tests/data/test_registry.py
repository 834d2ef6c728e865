import gzip
import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from idx_files import write_mnist

from tensorpress.data import DATASETS, ROOT_VARIABLE, load
from tensorpress.errors import CorruptFileError, DataNotFoundError, InvalidArgumentError


def rows(*parts):
    """The images of some parts, sorted, to compare them as multisets."""
    return torch.cat([part.images.flatten(1) for part in parts]).unique(dim=0, return_counts=True)


def test_digits_are_complete_and_the_parts_disjoint():
    digits = load("digits", validation=200)
    parts = (digits.train, digits.validation, digits.test)
    assert [len(part) for part in parts] == [1001, 200, 596]
    assert sum(rows(*parts)[1]) == 1797
    # The 1,797 digits are all different, so different parts cannot share one.
    assert (rows(*parts)[1] == 1).all()
    assert digits.train.images.min() == 0
    assert digits.train.images.max() == 255


def test_digits_are_those_of_scikit_learn_in_its_order():
    digits = load("digits")
    pixels = [part.images.numpy().tobytes() for part in (digits.train, digits.test)]
    hashes = [hashlib.sha256(part).hexdigest()[:16] for part in pixels]
    assert hashes == ["6814ee925cf0c102", "3640f4c6fac83c98"]
    assert digits.train.labels[:12].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]


def test_digits_test_part_is_stratified():
    digits = load("digits")
    for label in range(10):
        test, train = (int((part.labels == label).sum()) for part in (digits.test, digits.train))
        assert test == (test + train) // 3


@settings(max_examples=10)
@given(seed=st.integers(0, 2**31), validation=st.integers(0, 1200))
def test_validation_images_come_from_the_training_part_only(seed, validation):
    whole, split = load("digits"), load("digits", validation=validation, seed=seed)
    assert len(split.validation) == validation
    assert torch.equal(split.test.images, whole.test.images)
    assert torch.equal(rows(split.train, split.validation)[0], rows(whole.train)[0])


def test_the_seed_decides_the_validation_images():
    first, again, other = (load("digits", validation=100, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.validation.images, again.validation.images)
    assert not torch.equal(first.validation.images, other.validation.images)


def test_without_validation_the_official_order_is_kept(tmp_path):
    write_mnist(tmp_path / "mnist")
    splits = load("mnist", tmp_path)
    assert splits.train.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(splits.validation) == 0


@pytest.mark.parametrize("validation", [-1, 1201, 5000])
def test_impossible_validation_sizes(validation):
    with pytest.raises(InvalidArgumentError, match=f"0 to 1200, .* got {validation}"):
        load("digits", validation=validation)


def test_all_parts_are_resized():
    digits = load("digits", validation=10, size=(5, 12))
    for part in (digits.train, digits.validation, digits.test):
        assert part.images.shape[1:] == (1, 5, 12)


def test_the_environment_names_the_folder(tmp_path, monkeypatch):
    write_mnist(tmp_path / "fashion-mnist", suffix=".gz")
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    assert len(load("fashion-mnist").train) == 6


def test_any_folder_of_mnist_form_can_be_named(tmp_path):
    write_mnist(tmp_path / "my-letters")
    assert len(load("my-letters", tmp_path).test) == 3


@pytest.mark.parametrize("name", ["minst", "", "..", "../mnist"])
def test_unknown_names(tmp_path, name):
    write_mnist(tmp_path / "mnist")
    (tmp_path / "sub").mkdir()
    with pytest.raises(InvalidArgumentError, match="unknown dataset"):
        load(name, tmp_path / "sub")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("mnist", "train-images-idx3-ubyte.gz"),
        ("fashion-mnist", "t10k-labels-idx1-ubyte.gz"),
        ("cifar10", "cifar-10-binary.tar.gz"),
    ],
)
def test_missing_data_says_what_to_download_and_where_to_put_it(
    tmp_path, monkeypatch, name, wanted
):
    monkeypatch.delenv(ROOT_VARIABLE, raising=False)
    with pytest.raises(DataNotFoundError) as unset:
        load(name)
    assert wanted in str(unset.value)
    assert f"set the environment variable {ROOT_VARIABLE}" in str(unset.value)
    with pytest.raises(DataNotFoundError) as empty:
        load(name, tmp_path)
    assert wanted in str(empty.value)
    assert "://" in str(empty.value)
    assert str(tmp_path) in str(empty.value)


def test_corrupt_data_is_not_taken_for_missing(tmp_path):
    write_mnist(tmp_path / "mnist", suffix=".gz")
    path = tmp_path / "mnist" / "train-labels-idx1-ubyte.gz"
    path.write_bytes(gzip.compress(b"junk"))
    with pytest.raises(CorruptFileError, match="train-labels"):
        load("mnist", tmp_path)


def test_every_data_set_says_what_it_is():
    for name, known in DATASETS.items():
        assert known.name == name
        assert known.description
        assert known.classes == (20 if name == "moving-digits" else 10)
    digits = load("digits")
    assert digits.train.images.shape[1:] == DATASETS["digits"].shape


@pytest.mark.parametrize(("name", "train"), [("mnist", 60_000), ("cifar10", 50_000)])
def test_official_files(data_root, name, train):
    splits = load(name, data_root, validation=5000)
    assert len(splits.train) == train - 5000
    assert len(splits.validation) == 5000
    assert splits.test.images.shape == (10_000, *DATASETS[name].shape)
    assert splits.test.labels.unique().tolist() == list(range(10))
