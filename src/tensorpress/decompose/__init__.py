"""Tensor algebra: tensors in, factors out; nothing here knows what a layer is."""

from tensorpress.decompose.algebra import fold, mode_product, project, tucker_to_tensor, unfold
from tensorpress.decompose.cp import CP, cp_als, cp_to_tensor
from tensorpress.decompose.shared_core import SharedTucker, shared_tucker
from tensorpress.decompose.tucker import Tucker, hooi, tucker_params

__all__ = [
    "CP",
    "SharedTucker",
    "Tucker",
    "cp_als",
    "cp_to_tensor",
    "fold",
    "hooi",
    "mode_product",
    "project",
    "shared_tucker",
    "tucker_params",
    "tucker_to_tensor",
    "unfold",
]
