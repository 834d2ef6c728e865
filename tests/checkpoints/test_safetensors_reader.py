import json

import pytest
import torch
from safetensors.torch import save_file

from tensorpress.checkpoints.safetensors_reader import INDEX, WEIGHTS, TensorFiles
from tensorpress.errors import CorruptFileError, DataNotFoundError


@pytest.fixture
def folder(tmp_path):
    save_file(
        {"a": torch.arange(3.0), "b": torch.ones(2, 2).bfloat16()}, tmp_path / "1.safetensors"
    )
    save_file({"c": torch.tensor(True)}, tmp_path / "2.safetensors")
    write_index(tmp_path, {"a": "1.safetensors", "b": "1.safetensors", "c": "2.safetensors"})
    return tmp_path


def write_index(folder, places):
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))


def test_shapes_types_and_files_are_known_without_reading_values(folder):
    files = TensorFiles(folder)
    assert files.files == {"1.safetensors": ["a", "b"], "2.safetensors": ["c"]}
    stored = {name: (t.shape, t.dtype, t.bytes) for name, t in files.tensors.items()}
    assert stored == {
        "a": ((3,), torch.float32, 12),
        "b": ((2, 2), torch.bfloat16, 8),
        "c": ((), torch.bool, 1),
    }


def test_values_outlive_the_file(folder):
    values = TensorFiles(folder).read("a")
    (folder / "1.safetensors").unlink()
    assert values.tolist() == [0, 1, 2]


def test_a_single_file_needs_no_index(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / WEIGHTS)
    assert TensorFiles(tmp_path).files == {WEIGHTS: ["a"]}


def test_what_is_missing_is_named(folder, tmp_path):
    with pytest.raises(DataNotFoundError, match="nowhere is not a folder"):
        TensorFiles(tmp_path / "nowhere")
    (folder / "2.safetensors").unlink()
    with pytest.raises(DataNotFoundError, match=r"2\.safetensors is missing"):
        TensorFiles(folder)
    (folder / INDEX).unlink()
    with pytest.raises(DataNotFoundError, match=r"model\.safetensors is missing"):
        TensorFiles(folder)


@pytest.mark.parametrize("cut", [4, 40, -1])
def test_a_truncated_shard_is_named(folder, cut):
    path = folder / "1.safetensors"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(CorruptFileError, match=r"1\.safetensors is truncated or damaged"):
        TensorFiles(folder)


def test_an_unknown_type_in_a_header_is_an_error(folder):
    path = folder / "1.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"F32"', b'"F33"'))
    with pytest.raises(CorruptFileError, match=r"1\.safetensors"):
        TensorFiles(folder)


def test_a_shard_cut_after_it_was_looked_at_is_an_error(folder):
    files = TensorFiles(folder)
    (folder / "1.safetensors").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"1\.safetensors"):
        files.read("a")


@pytest.mark.parametrize(
    "index",
    ["{", "[]", "{}", '{"weight_map": 1}', '{"weight_map": {}}', '{"weight_map": {"a": 1}}'],
)
def test_a_damaged_index_is_named(folder, index):
    (folder / INDEX).write_text(index)
    with pytest.raises(CorruptFileError, match="index"):
        TensorFiles(folder)


def test_an_index_cannot_lead_out_of_the_folder(folder):
    write_index(folder, {"a": "../1.safetensors"})
    with pytest.raises(CorruptFileError, match="which is not a file name"):
        TensorFiles(folder)


def test_an_index_that_names_the_wrong_shard_is_an_error(folder):
    write_index(folder, {"a": "2.safetensors", "b": "1.safetensors"})
    with pytest.raises(CorruptFileError, match="lists 'a' in 2"):
        TensorFiles(folder)


def test_a_tensor_in_two_shards_is_an_error(folder):
    save_file({"a": torch.zeros(3)}, folder / "2.safetensors")
    with pytest.raises(CorruptFileError, match=r"'a' is in 1\.safetensors and in 2\.safetensors"):
        TensorFiles(folder)


def test_the_fingerprint_changes_with_a_file(folder):
    before = TensorFiles(folder).fingerprint
    assert TensorFiles(folder).fingerprint == before
    save_file({"c": torch.zeros(5)}, folder / "2.safetensors")
    assert TensorFiles(folder).fingerprint != before
