"""The difference between dense and pressed weights as a LoRA adapter for PEFT."""

import json
import os
from pathlib import Path

import torch
from torch import Tensor

from tensorpress.checkpoints.pressed_files import PressedFiles
from tensorpress.checkpoints.safetensors_reader import TensorFiles
from tensorpress.checkpoints.safetensors_writer import open_shard_writer
from tensorpress.checkpoints.save import create_folder
from tensorpress.checkpoints.tensor_names import match_tensor_names
from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.svd import truncated_svd
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.utils.module_tree import parameter_name


def write_adapter(
    folder: str | os.PathLike[str],
    base: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rank: int = 16,
) -> None:
    """Write the error of pressed linear layers as a LoRA adapter for PEFT.

    For every pressed linear layer, the adapter has the best rank-r approximation of W − W̃, the
    dense minus the pressed weight. Added to the pressed model it undoes part of the error (all of
    it at full rank), and it is a starting point for training an adapter.

    Parameters
    ----------
    folder : path
        The folder of a pressed Transformers model.
    base : path
        The original dense checkpoint.
    out : path
        A new or empty folder for ``adapter_model.safetensors`` and ``adapter_config.json``.
    rank : int
        The rank of the adapter, at most the smaller side of each layer.

    Raises
    ------
    DataNotFoundError, CorruptFileError
        If files are missing, truncated or damaged.
    ModelMismatchError
        If the two are not checkpoints of the same model.
    InvalidArgumentError
        If the rank is below 1, the folder has no pressed linear layer, or ``out`` has files.

    References
    ----------
    Hu et al. (2022), "LoRA", eq. 3: W x + (α / r) B A x, here with α = r.
    """
    if rank < 1:
        raise InvalidArgumentError(f"the rank of an adapter must be at least 1, got {rank}")
    source, original = PressedFiles(folder), TensorFiles(base)
    names = match_tensor_names(source.dense, original)
    stored = {name: stored_name for stored_name, name in reversed(names.items())}
    layers = [layer for layer in source.plan.layers if layer.spec.kind == "Linear"]
    if not layers:
        raise InvalidArgumentError(f"{folder} has no pressed linear layer")
    ranks = {layer.name: min(rank, layer.spec.inputs, layer.spec.outputs) for layer in layers}
    with create_folder(Path(out)) as temporary:
        tensors = _skeleton(source, layers, ranks)
        with open_shard_writer(temporary / "adapter_model.safetensors", tensors) as file:
            for layer in layers:
                name = parameter_name(source.dense, layer.name)
                dense = original.read(stored[name])
                # D = W − W̃, of shape (out, in)
                loss = to_working_precision(dense) - to_working_precision(source.read_dense(name))
                loss = loss.mT if layer.spec.inputs_first else loss
                first, second = _split(loss, ranks[layer.name])
                prefix = f"base_model.model.{layer.name}"
                file.write(f"{prefix}.lora_A.weight", first.to(dense.dtype))
                file.write(f"{prefix}.lora_B.weight", second.to(dense.dtype))
        config = _adapter_config(source, layers, ranks, rank)
        text = json.dumps(config, indent=2) + "\n"
        (temporary / "adapter_config.json").write_text(text, encoding="utf-8")


def _split(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return A (r, in) and B (out, r) whose product BA is closest to a matrix (out, in)."""
    svd = truncated_svd(matrix, rank)
    root = svd.s.sqrt()  # D ≈ (U S½)(S½ Vᵀ)
    return (svd.v * root).mT.contiguous(), (svd.u * root).contiguous()


def _skeleton(
    source: PressedFiles, layers: list[LayerPlan], ranks: dict[str, int]
) -> dict[str, Tensor]:
    """Return the tensors of the adapter on the meta device."""
    dense, tensors = source.dense_tensors(), {}
    for layer in layers:
        dtype, prefix = dense[parameter_name(source.dense, layer.name)].dtype, layer.name
        shapes = {"A": (ranks[prefix], layer.spec.inputs), "B": (layer.spec.outputs, ranks[prefix])}
        for part, shape in shapes.items():
            name = f"base_model.model.{prefix}.lora_{part}.weight"
            tensors[name] = torch.empty(shape, dtype=dtype, device="meta")
    return tensors


def _adapter_config(
    source: PressedFiles, layers: list[LayerPlan], ranks: dict[str, int], rank: int
) -> dict[str, object]:
    """Return the config of an adapter in PEFT's format, without defaults."""
    kind = type(source.dense)
    smaller = {name: value for name, value in ranks.items() if value != rank}
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(source.files.folder),
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__},
        "r": rank,
        "lora_alpha": rank,
        "rank_pattern": smaller,
        "alpha_pattern": smaller,
        "target_modules": [layer.name for layer in layers],
        "fan_in_fan_out": any(layer.spec.inputs_first for layer in layers),
        "bias": "none",
        "inference_mode": True,
        "task_type": None,
    }
