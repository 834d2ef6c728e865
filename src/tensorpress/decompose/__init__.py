"""Decompositions of matrices and tensors into factors, independent of layers and networks."""

from tensorpress.decompose.cp_als import cp_als
from tensorpress.decompose.cp_correction import cp_correct
from tensorpress.decompose.cp_nls import cp_nls
from tensorpress.decompose.cp_tensor import CP, cp_sensitivity, cp_to_tensor, max_cp_rank
from tensorpress.decompose.shared_core_tucker import SharedTucker, shared_tucker
from tensorpress.decompose.spectrum import Spectrum, leading_basis, singular_values, spectrum
from tensorpress.decompose.svd import SVD, truncated_svd
from tensorpress.decompose.tensor_algebra import (
    fold,
    mode_product,
    project,
    tt_to_tensor,
    tucker_to_tensor,
    unfold,
)
from tensorpress.decompose.tensor_train import TensorTrain, tt_round, tt_spectra, tt_svd
from tensorpress.decompose.tt_matrix import (
    TTMatrix,
    tt_matrix,
    tt_matrix_spectra,
    tt_row_macs,
    tt_rows,
    tt_to_matrix,
)
from tensorpress.decompose.tt_matvec import (
    TTOrder,
    cheapest_tt_order,
    tt_macs,
    tt_merge,
    tt_multiply,
)
from tensorpress.decompose.tt_ranks import attainable_tt_ranks, largest_tt_ranks, tt_params
from tensorpress.decompose.tucker import Tucker, hooi, st_hosvd, tucker_params

__all__ = [
    "CP",
    "SVD",
    "SharedTucker",
    "Spectrum",
    "TTMatrix",
    "TTOrder",
    "TensorTrain",
    "Tucker",
    "attainable_tt_ranks",
    "cheapest_tt_order",
    "cp_als",
    "cp_correct",
    "cp_nls",
    "cp_sensitivity",
    "cp_to_tensor",
    "fold",
    "hooi",
    "largest_tt_ranks",
    "leading_basis",
    "max_cp_rank",
    "mode_product",
    "project",
    "shared_tucker",
    "singular_values",
    "spectrum",
    "st_hosvd",
    "truncated_svd",
    "tt_macs",
    "tt_matrix",
    "tt_matrix_spectra",
    "tt_merge",
    "tt_multiply",
    "tt_params",
    "tt_round",
    "tt_row_macs",
    "tt_rows",
    "tt_spectra",
    "tt_svd",
    "tt_to_matrix",
    "tt_to_tensor",
    "tucker_params",
    "tucker_to_tensor",
    "unfold",
]
