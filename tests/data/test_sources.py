import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from idx_files import write_mnist
from safetensors.torch import save_file

from tensorpress.data import open_source
from tensorpress.data.source import Batches, Source
from tensorpress.data.sources import short_name
from tensorpress.data.svhn import read_svhn
from tensorpress.errors import (
    CorruptFileError,
    DataNotFoundError,
    InvalidArgumentError,
    TensorPressError,
)
from tensorpress.models.torchvision import mend_torchvision

FUNCTIONS = """
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

inputs, labels = torch.arange(12.0).reshape(6, 2), torch.arange(6)

def dataset():
    return TensorDataset(inputs, labels)

def loader(size):
    return DataLoader(dataset(), batch_size=size)

def parts():
    return {"train": dataset(), "val": loader(2)}

def generator():
    yield from [inputs[:3], inputs[3:]]

class Stream(IterableDataset):
    def __iter__(self):
        return iter(inputs)

def number():
    return 3

def fails():
    raise RuntimeError("no data today")
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a module of functions, and no data folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORPRESS_DATA", raising=False)
    (tmp_path / "own_data.py").write_text(FUNCTIONS)
    return tmp_path


def skip_without(package: str) -> None:
    """Skip a test without a package."""
    if find_spec(package) is None:
        pytest.skip(f"needs {package}")


def save_image(path: Path, colour: tuple[int, int, int]) -> None:
    image = pytest.importorskip("PIL.Image")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.new("RGB", (6, 5), colour).save(path)


def examples(part: Any) -> list[tuple[Any, int | None]]:
    return [part[index] for index in range(len(part))]


def test_folders_of_images_by_the_names_of_their_classes(folder: Path) -> None:
    skip_without("torchvision")
    for kind, colour in {"dog": (9, 0, 0), "cat": (0, 7, 0)}.items():
        save_image(folder / "pets" / kind / "a.png", colour)
    source = open_source("pets")
    assert (source.name, source.classes, source.train) == ("pets", ("cat", "dog"), None)
    assert [label for _, label in examples(source.test)] == [0, 1]
    assert source.test[1][0].getpixel((0, 0)) == (9, 0, 0)


def test_folders_of_images_by_the_numbers_of_their_classes(folder: Path) -> None:
    skip_without("torchvision")
    for kind in ("0002", "0010", "7"):
        save_image(folder / "some" / kind / "a.png", (0, 0, 0))
    source = open_source("some")
    assert source.classes == ()
    assert [label for _, label in examples(source.test)] == [2, 10, 7]


def test_folders_of_images_have_parts_or_no_labels(folder: Path) -> None:
    skip_without("torchvision")
    for part, count in (("train", 3), ("val", 2)):
        for number in range(count):
            save_image(folder / "data" / "birds" / part / "owl" / f"{number}.png", (1, 2, 3))
    source = open_source("birds", folder / "data")
    assert source.train is not None
    assert (len(source.train), len(source.test), source.classes) == (3, 2, ("owl",))
    save_image(folder / "birds" / "loose" / "x.png", (5, 5, 5))
    [(image, label)] = examples(open_source("birds/loose").test)
    assert (image.size, label) == ((6, 5), None)
    save_image(folder / "data" / "birds" / "val" / "jay" / "0.png", (1, 2, 3))
    with pytest.raises(DataNotFoundError, match="do not have the same classes"):
        open_source("data/birds")


def test_a_folder_without_images(folder: Path) -> None:
    skip_without("torchvision")
    (folder / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(DataNotFoundError, match="empty has no images"):
        open_source("empty")


def test_damaged_images_are_named(folder: Path) -> None:
    skip_without("torchvision")
    for place in ("pets/cat", "loose"):
        save_image(folder / place / "a.png", (0, 7, 0))
        (folder / place / "b.png").write_bytes((folder / place / "a.png").read_bytes()[:50])
        source = open_source(place.partition("/")[0])
        assert source.test[0][0].getpixel((0, 0)) == (0, 7, 0)
        with pytest.raises(CorruptFileError, match=rf"{place}/b\.png cannot be read as an image"):
            source.test[1]


def test_official_files_are_known_by_their_names(folder: Path) -> None:
    write_mnist(folder / "kuzushiji")
    source = open_source("kuzushiji")
    assert source.train is not None
    pixels, label = source.test[0]
    assert (pixels.dtype, pixels.ndim, type(label)) == (torch.uint8, 3, int)


def test_official_files_of_svhn(folder: Path) -> None:
    matlab = pytest.importorskip("scipy.io")
    pixels = np.arange(2 * 3072, dtype=np.uint8).reshape(32, 32, 3, 2)
    (folder / "svhn").mkdir()
    for name in ("train", "test"):
        labels = np.array([[10], [3]], np.uint8)
        matlab.savemat(folder / "svhn" / f"{name}_32x32.mat", {"X": pixels, "y": labels})
    train, test = read_svhn(folder / "svhn")
    assert test.labels.tolist() == [0, 3]
    assert train.images[1, 2, 4, 5] == pixels[4, 5, 2, 1]
    assert len(open_source("svhn", folder).test) == len(open_source("./svhn").test) == 2
    matlab.savemat(folder / "svhn" / "test_32x32.mat", {"X": pixels, "y": [[0], [3]]})
    with pytest.raises(CorruptFileError, match="outside 1 to 10"):
        open_source("svhn", folder)
    (folder / "svhn" / "test_32x32.mat").write_bytes(b"no matrix")
    with pytest.raises(CorruptFileError, match="not a file of SVHN"):
        open_source("svhn", folder)


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_arrays_with_labels_and_parts(folder: Path, suffix: str) -> None:
    inputs, labels = torch.randn(5, 3), torch.arange(5)
    arrays = {"x_train": inputs, "y_train": labels, "x_test": inputs[:2], "y_test": labels[:2]}
    if suffix == "npz":
        np.savez(folder / "a.npz", **{name: x.numpy() for name, x in arrays.items()})
    else:
        save_file({name: x.clone() for name, x in arrays.items()}, folder / "a.safetensors")
    source = open_source(f"a.{suffix}")
    assert source.train is not None
    assert (len(source.train), len(source.test)) == (5, 2)
    content, label = source.train[3]
    assert torch.equal(content, inputs[3])
    assert label == 3


def test_an_array_alone_and_pixels(folder: Path) -> None:
    pixels = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    np.save(folder / "a.npy", pixels)
    content, label = open_source("a.npy").test[1]
    assert label is None
    assert content.shape == (3, 4, 5)
    assert content[2, 1, 3] == pixels[1, 1, 3, 2]
    np.save(folder / "grey.npy", pixels[..., 0])
    assert open_source("grey.npy").test[0][0].shape == (1, 4, 5)


def test_arrays_of_tokens_are_arguments_by_name(folder: Path) -> None:
    save_file(
        {"input_ids": torch.ones(3, 4).long(), "attention_mask": torch.ones(3, 4).long()},
        folder / "tokens.safetensors",
    )
    content, _ = open_source("tokens.safetensors").test[2]
    assert {name: tuple(x.shape) for name, x in content.items()} == {
        **{"input_ids": (4,), "attention_mask": (4,)}
    }


def test_arrays_that_cannot_be_examples(folder: Path) -> None:
    np.savez(folder / "two.npz", first=np.zeros(3), second=np.zeros(3))
    with pytest.raises(InvalidArgumentError, match="name the inputs inputs and the classes labels"):
        open_source("two.npz")
    np.savez(folder / "other.npz", x=np.zeros(3), y=np.zeros(4))
    with pytest.raises(InvalidArgumentError, match="one row per example"):
        open_source("other.npz")
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(CorruptFileError, match=r"objects\.npy cannot be read"):
        open_source("objects.npy")
    np.savez(folder / "complex.npz", x=np.zeros((3, 2), np.complex64))
    with pytest.raises(
        InvalidArgumentError, match=r"complex\.npz: the array x is torch\.complex64"
    ):
        open_source("complex.npz")
    np.savez(folder / "empty.npz", x_test=np.zeros((0, 2)), y_test=np.zeros(0))
    with pytest.raises(InvalidArgumentError, match=r"empty\.npz has no examples: the array x"):
        open_source("empty.npz")
    np.savez(folder / "none.npz")
    with pytest.raises(InvalidArgumentError, match=r"none\.npz has no arrays"):
        open_source("none.npz")
    (folder / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(CorruptFileError, match=r"bad\.safetensors cannot be read"):
        open_source("bad.safetensors")


def test_targets_that_are_no_classes_are_left_out(folder: Path) -> None:
    one_hot, scores = torch.eye(3).numpy(), torch.rand(3, 3).numpy()
    for labels, expected in (
        (one_hot, [0, 1, 2]),
        (scores, [None] * 3),
        (scores[:, 0], [None] * 3),
        (np.array([2.0, 0.0, 1.0]), [2, 0, 1]),
    ):
        np.savez(folder / "a.npz", x=np.zeros((3, 2)), y=labels)
        assert [label for _, label in examples(open_source("a.npz").test)] == expected
    (folder / "regression.py").write_text(
        "import torch\n"
        "def data():\n"
        "    return torch.utils.data.TensorDataset(torch.zeros(2, 3), torch.rand(2))\n"
    )
    assert open_source("regression:data").test[0][1] is None


def test_texts(folder: Path) -> None:
    (folder / "a.txt").write_text("one\n\ntwo\n")
    assert examples(open_source("a.txt").test) == [("one\n", None), ("\n", None), ("two\n", None)]
    rows = [{"text": "good", "label": "yes"}, {"text": "bad", "label": "no"}]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    source = open_source("a.jsonl")
    assert (examples(source.test), source.classes) == ([("good", 1), ("bad", 0)], ("no", "yes"))
    (folder / "b.jsonl").write_text('{"body": "x", "label": 3}\n')
    assert examples(open_source("b.jsonl").test) == [("x", 3)]
    for labels, expected in ((("1.0", "null"), [1, None]), (("0.5", "1"), [None, None])):
        lines = [f'{{"text": "x", "label": {label}}}' for label in labels]
        (folder / "c.jsonl").write_text("\n".join(lines))
        assert [label for _, label in examples(open_source("c.jsonl").test)] == expected


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "no text"),
        ("a.txt", b"\xff\xfe", "not UTF-8"),
        ("a.jsonl", b"\n", "no JSON lines"),
        ("a.jsonl", b'{"text": "x"}\n[1]', "line 2: expected a JSON object"),
        ("a.jsonl", b'{"text": "x"}\n{', "line 2"),
        ("a.jsonl", b'{"a": "x", "b": "y"}', "expected the text under text, got a, b"),
        ("a.jsonl", b'{"text": "x"}\n{"body": "y"}', "line 2 has no text: expected a string"),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": null}', "line 3 has no text"),
        ("a.jsonl", b'{"text": null, "id": "a"}', "line 1 has no text: expected a string under"),
        (
            "a.jsonl",
            b'{"text": "x", "label": true}',
            "line 1 has the label true: expected a class number",
        ),
        ("a.jsonl", b'{"text": "x", "label": [1]}', r"line 1 has the label \[1\]: expected"),
        ("a.jsonl", b'{"text": "x", "y": {"a": 1}}', 'line 1 has the label {"a": 1}: expected'),
        (
            "a.jsonl",
            b'{"text": "x", "y": "a"}\n{"text": "x", "y": 3}',
            "line 2 .* 3: .* a class name",
        ),
        ("a.jsonl", b'{"text": "x", "label": 1e300}', r"line 1 has the label 1e\+300: expected"),
        ("a.jsonl", b'{"text": "x", "y": 1}\n{"text": "x"}', "line 2 has no 'y'"),
    ],
)
def test_texts_that_cannot_be_read(folder: Path, name: str, content: bytes, message: str) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(TensorPressError, match=message):
        open_source(name)


def test_data_sets_of_hugging_face(folder: Path) -> None:
    mend_torchvision()
    datasets = pytest.importorskip("datasets")
    image = pytest.importorskip("PIL.Image")
    rows = {"image": [image.new("RGB", (4, 4), (n, 0, 0)) for n in range(3)], "label": [1, 0, 1]}
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pets = datasets.Dataset.from_dict(rows, features)
    datasets.DatasetDict({"train": pets, "test": pets.select([2])}).save_to_disk(folder / "pets")
    source = open_source("pets")
    assert source.train is not None
    assert (len(source.train), len(source.test), source.classes) == (3, 1, ("cat", "dog"))
    content, label = source.test[0]
    assert (content.getpixel((0, 0)), label) == ((2, 0, 0), 1)
    pets.to_parquet(folder / "pets.parquet")
    assert [label for _, label in examples(open_source("pets.parquet").test)] == [1, 0, 1]
    damaged = datasets.Dataset.from_dict({"image": [{"bytes": b"no", "path": None}]})
    damaged.cast_column("image", datasets.Image()).to_parquet(folder / "damaged.parquet")
    with pytest.raises(CorruptFileError, match=r"damaged\.parquet: row 1 cannot be read"):
        open_source("damaged.parquet").test[0]
    (folder / "hub").mkdir()
    pets.to_parquet(folder / "hub" / "train-00000-of-00002.parquet")
    pets.to_parquet(folder / "hub" / "train-00001-of-00002.parquet")
    pets.to_parquet(folder / "hub" / "test-00000-of-00001.parquet")
    source = open_source("hub")
    assert source.train is not None
    assert (len(source.train), len(source.test)) == (6, 3)


def test_rows_of_texts_numbers_and_tokens(folder: Path) -> None:
    mend_torchvision()
    datasets = pytest.importorskip("datasets")
    texts = {"id": ["1", "2"], "text": ["a", "b"], "label": [0, 1]}
    datasets.Dataset.from_dict(texts).save_to_disk(folder / "texts")
    assert examples(open_source("texts").test) == [("a", 0), ("b", 1)]
    vectors = {"x": [[1.0, 2.0], [3.0, 4.0]], "label": [0, 1]}
    datasets.Dataset.from_dict(vectors).save_to_disk(folder / "vectors")
    assert open_source("vectors").test[1][0].tolist() == [3.0, 4.0]
    datasets.Dataset.from_dict({"input_ids": [[1, 2]]}).save_to_disk(folder / "tokens")
    named = {"text": ["a", "b", "c"], "label": ["yes", "no", "yes"]}
    datasets.Dataset.from_dict(named).save_to_disk(folder / "named")
    source = open_source("named")
    assert (examples(source.test), source.classes) == (
        *([("a", 1), ("b", 0), ("c", 1)], ("no", "yes")),
    )
    scores = {"text": ["a"], "label": [0.5]}
    datasets.Dataset.from_dict(scores).save_to_disk(folder / "scores")
    assert examples(open_source("scores").test) == [("a", None)]
    gaps = {"text": ["a", None], "label": [None, "yes"]}
    datasets.Dataset.from_dict(gaps).save_to_disk(folder / "gaps")
    source = open_source("gaps")
    assert (source.test[0], source.classes) == (("a", None), ("yes",))
    with pytest.raises(InvalidArgumentError, match="gaps: row 2 has no 'text'"):
        source.test[1]
    content, label = open_source("tokens").test[0]
    assert (content["input_ids"].tolist(), label) == ([1, 2], None)
    (folder / "tokens" / "state.json").unlink()
    with pytest.raises(CorruptFileError, match="cannot be read by datasets"):
        open_source("tokens")


def test_functions(folder: Path) -> None:
    assert [label for _, label in examples(open_source("own_data:dataset").test)] == [*range(6)]
    batches = open_source("own_data:loader,size=4").test
    assert isinstance(batches, Batches)
    assert [len(labels) for _, labels in batches] == [4, 2]
    parts = open_source("own_data:parts")
    assert parts.train is not None
    assert isinstance(parts.test, Batches)
    assert [x.tolist() for x in open_source("own_data:generator").test][1][0] == [6, 7]
    [batch] = open_source("own_data:Stream").test
    assert batch.shape == (6, 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("own_data:number", "returns int: expected a DataLoader"),
        ("own_data:fails", r"RuntimeError: no data today \(.*own_data.py, line"),
        ("own_data:loade", "did you mean 'loader'"),
        ("no_such_module:data", "cannot be imported"),
        ("minst", "did you mean 'mnist'.*or package.module:function"),
        ("pictures/cats", "no file or folder pictures/cats"),
        ("own_data.py", "is not a data file: expected a name that ends with .npy"),
    ],
)
def test_names_of_nothing(name: str, message: str) -> None:
    with pytest.raises(TensorPressError, match=message):
        open_source(name)


def test_the_place_that_was_searched_is_named(folder: Path) -> None:
    with pytest.raises(DataNotFoundError, match=f"neither here nor in {folder}"):
        open_source("a.npz", folder)


def test_a_fifth_of_data_without_parts_is_for_tests() -> None:
    source = Source("letters", [(letter, None) for letter in "abcdefghij"])
    train, test = source.divide()
    assert not isinstance(train, Batches)
    assert not isinstance(test, Batches)
    assert (len(train), len(test)) == (8, 2)
    assert sorted(x for part in (train, test) for x, _ in examples(part)) == list("abcdefghij")
    assert examples(source.divide()[1]) == examples(test)
    with pytest.raises(InvalidArgumentError, match="cannot be divided"):
        Source("stream", Batches([])).divide()


def test_parts_of_other_names() -> None:
    with pytest.raises(InvalidArgumentError, match="left, right: name them train and test"):
        Source.from_parts("both", {"left": [], "right": []})


def test_short_names_hide_where_data_lie() -> None:
    assert short_name("/home/me/flowers/train") == "train"
    assert short_name("cifar10") == "cifar10"


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr("tensorpress.models.optional_imports.find_spec", lambda _: None)
    (folder / "pets" / "cat").mkdir(parents=True)
    (folder / "pets" / "cat" / "a.png").touch()
    with pytest.raises(TensorPressError, match="pip install torchvision"):
        open_source("pets")
    (folder / "rows.parquet").touch()
    with pytest.raises(TensorPressError, match="pip install datasets"):
        open_source("rows.parquet")
