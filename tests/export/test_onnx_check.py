"""An exported file compared with a model: of another model, of no model, and the difference."""

from pathlib import Path

import pytest
import torch
from torch import nn

from tensorpress.errors import CorruptFileError, DataNotFoundError, ModelMismatchError
from tensorpress.export.onnx import export_onnx
from tensorpress.export.onnx_check import check_onnx, relative_difference


def test_check_onnx_refuses_a_file_of_another_model(tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    file = export_onnx(net, x, tmp_path / "m.onnx")
    assert check_onnx(nn.Linear(4, 3), x, file.path) > 0.01
    with pytest.raises(ModelMismatchError, match=r"outputs of shapes \[\(2, 3\)\]"):
        check_onnx(nn.Linear(4, 5), x, file.path)
    with pytest.raises(ModelMismatchError, match=r"has 1 inputs .* expected 2"):
        check_onnx(nn.Bilinear(4, 1, 3), [x, torch.ones(2, 1)], file.path)
    with pytest.raises(ModelMismatchError, match="fails on the inputs"):
        check_onnx(nn.Linear(6, 3), torch.randn(2, 6), file.path)


def test_other_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    net, x = nn.Linear(4, 3), torch.randn(2, 4)
    with pytest.raises(DataNotFoundError, match=r"no ONNX file at .*m\.onnx"):
        check_onnx(net, x, tmp_path / "m.onnx")
    (tmp_path / "m.onnx").write_bytes(b"no protobuf at all")
    with pytest.raises(CorruptFileError, match=r"m\.onnx cannot be read by onnxruntime"):
        check_onnx(net, x, tmp_path / "m.onnx")


def test_a_difference_is_relative_to_the_largest_value() -> None:
    b = torch.tensor([4.0, -8.0, float("-inf")])
    assert relative_difference(b, b) == 0
    assert relative_difference(torch.tensor([3.0, -8.0, float("-inf")]), b) == 1 / 8
    assert relative_difference(torch.tensor([4.0, -8.0, float("inf")]), b) == float("inf")
    assert relative_difference(torch.tensor([4.0, -8.0, 1.0]), b) == float("inf")
    assert relative_difference(torch.tensor([1.0, 0.0]), torch.zeros(2)) == 1
    assert relative_difference(torch.empty(0), torch.empty(0)) == 0
