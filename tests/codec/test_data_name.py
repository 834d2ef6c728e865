from pathlib import Path

import pytest
from torch import nn

import tensorpress as tp
from tensorpress.codec.adaptive_coder import Stream
from tensorpress.codec.data_name import (
    DATA_NUMBERS,
    read_data_name,
    read_text,
    write_data_name,
)
from tensorpress.codec.storage import Coder
from tensorpress.data import DATASETS
from tensorpress.data.transforms import ImageOptions
from tensorpress.errors import CorruptFileError, InvalidArgumentError
from tensorpress.models.zoo import build

NAMES = (*DATA_NUMBERS, "flowers", "my.module:flowers,size=3", "blåbär", "")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_a_file_says_its_data(tmp_path: Path, name: str, coder: Coder) -> None:
    dense = nn.Linear(9, 8)
    tp.save(dense, tmp_path / "a.tpz", data=name, coder=coder)
    tp.save(dense, tmp_path / "b.tpz", coder=coder)
    inspection = tp.inspect(tmp_path / "a.tpz")
    assert (inspection.data, inspection.coder) == (name, coder)
    assert tp.inspect(tmp_path / "b.tpz").data is None
    loaded, plain = (tp.load(tmp_path / file, dense) for file in ("a.tpz", "b.tpz"))
    assert loaded.weight.equal(plain.weight)


@pytest.mark.parametrize("name", [None, "mnist", "flowers"])
@pytest.mark.parametrize("coder", ["range", "huffman"])
def test_a_file_says_how_its_model_takes_images(
    tmp_path: Path, name: str | None, coder: Coder
) -> None:
    images = str(ImageOptions(size=(32, 48), mean=(0.5,) * 3, std=(0.25,) * 3, resize=40))
    dense = nn.Linear(9, 8)
    tp.save(dense, tmp_path / "a.tpz", data=name, preprocess=images, coder=coder)
    inspection = tp.inspect(tmp_path / "a.tpz")
    assert (inspection.data, inspection.preprocess, inspection.coder) == (name, images, coder)
    assert inspection.to_dict()["preprocess"] == images
    tp.encode(dense, tmp_path / "b.tpz", bits=16, data=name, preprocess=images)
    assert tp.inspect(tmp_path / "b.tpz").preprocess == images


def test_every_data_set_has_a_number_and_a_file_grows_by_a_byte(tmp_path: Path) -> None:
    assert set(DATA_NUMBERS) == set(DATASETS)
    lenet = build("lenet300100")
    plain = tp.save(lenet, tmp_path / "a.tpz", network="lenet300100")
    named = tp.save(lenet, tmp_path / "b.tpz", network="lenet300100", data="mnist")
    assert named <= plain + 1


def test_encoded_files_say_it_too(tmp_path: Path) -> None:
    tp.encode(nn.Linear(90, 80), tmp_path / "a.tpz", bits=4, data="flowers")
    assert tp.inspect(tmp_path / "a.tpz").data == "flowers"
    with pytest.raises(InvalidArgumentError, match="data, preprocess need a model"):
        tp.encode(nn.Linear(9, 8).state_dict(), tmp_path / "a.tpz", bits=4, data="flowers")


def test_names_that_no_file_has() -> None:
    with pytest.raises(InvalidArgumentError, match="1025 bytes, but a file takes at most 1024"):
        write_data_name(Stream(), "x" * 1025)
    for numbers, message in {
        (99,): "has no dataset with the number 99",
        (0, 5000): "claims to have 5000 bytes",
    }.items():
        stream = Stream()
        for number in numbers:
            stream.number("data", number)
        with pytest.raises(CorruptFileError, match=message):
            read_data_name(Stream(stream.finish()))
    stream = Stream()
    stream.number("data", 0)
    stream.number("data", 1)
    stream.choice(256, 255)
    with pytest.raises(CorruptFileError, match="is not text"):
        read_data_name(Stream(stream.finish()))


def test_a_text_of_a_damaged_length_is_refused() -> None:
    stream = Stream()
    stream.number("data", 2000)
    with pytest.raises(CorruptFileError, match="preprocessing claims to have 2000 bytes"):
        read_text(Stream(stream.finish()), "preprocessing")
