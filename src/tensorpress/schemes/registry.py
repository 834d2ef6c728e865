"""The schemes by name."""

from collections.abc import Mapping
from typing import Any

from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.schemes.ada_tucker import AdaTucker, ScadaTucker
from tensorpress.schemes.channel_pruning import ChannelPruning
from tensorpress.schemes.channel_svd import ChannelSVD
from tensorpress.schemes.cp import CPLayers
from tensorpress.schemes.low_rank_sparse import LowRankSparse
from tensorpress.schemes.pivoted_svd import PivotedSVD
from tensorpress.schemes.scheme import Scheme
from tensorpress.schemes.spatial_svd import SpatialChannelSVD, SpatialSVD
from tensorpress.schemes.svd_weight import SVDWeightScheme
from tensorpress.schemes.tensor_train import TensorTrain
from tensorpress.schemes.tt_conv import TTConvScheme
from tensorpress.schemes.tt_weight import TTWeightScheme
from tensorpress.schemes.tucker2 import Tucker2

SCHEMES: dict[str, Scheme] = {}
"""All schemes that a plan can name."""


def register(scheme: Scheme) -> None:
    """Make a scheme known by its name to plans, files and the command line.

    Raises
    ------
    InvalidArgumentError
        If another scheme has the name.

    Examples
    --------
    >>> register(ChannelSVD("channel_svd", "A second one."))
    Traceback (most recent call last):
    tensorpress.errors.InvalidArgumentError: the scheme 'channel_svd' exists already
    """
    if scheme.name in SCHEMES:
        raise InvalidArgumentError(f"the scheme {scheme.name!r} exists already")
    SCHEMES[scheme.name] = scheme


for _scheme in (
    AdaTucker(
        "ada_tucker",
        "weights rebuilt from Tucker factors of their reshape, a core each (Zhong et al. 2019)",
    ),
    ScadaTucker(
        "scada_tucker", "the same with one core shared by all layers (Zhong et al. 2019, sec. 2.4)"
    ),
    ChannelSVD(
        "channel_svd",
        "a kernel with fewer filters, then 1×1; for a Linear or an Embedding the SVD "
        "(Zhang et al. 2016)",
    ),
    SpatialSVD(
        "spatial_svd", "a vertical, then a horizontal convolution (Tai et al. 2016, Theorem 1)"
    ),
    SpatialSVD("spatial_svd_horizontal", "a horizontal, then a vertical convolution", "horizontal"),
    SpatialChannelSVD(
        "spatial_channel_svd",
        "a vertical, a horizontal and a 1×1 convolution (Zhang et al. 2016, asymmetric 3d)",
    ),
    ChannelSVD("tucker1_in", "1×1 to fewer channels, then a kernel (Tucker-1, input)", "in"),
    ChannelSVD("tucker1_out", "Tucker-1 on the output mode: the same as channel_svd"),
    Tucker2("tucker2", "1×1, a core kernel, 1×1; for a Linear A·G·Bᵀ (Kim et al. 2016)"),
    CPLayers("cp", "1×1, a depthwise convolution per mode, 1×1, by alternating least squares"),
    CPLayers("cp_nls", "the same by non-linear least squares (Lebedev et al. 2015)", "nls"),
    CPLayers(
        "cp_corrected",
        "the same with up to 1 % more error and no large terms that cancel "
        "(Phan et al. 2020): for fine-tuning",
        "corrected",
    ),
    ChannelPruning("channel_pruning", "a kernel on few input channels (He et al. 2017)"),
    LowRankSparse(
        "low_rank_sparse",
        "a kernel on few input channels plus one with fewer filters, then 1×1 (Yu et al. 2017)",
    ),
    PivotedSVD(
        "pivoted_svd",
        "the SVD of a Linear without the identity in its second factor (Zhao et al. 2025)",
    ),
    TensorTrain(
        "tensor_train",
        "1×1, a convolution per mode, 1×1; a Linear or an Embedding as TT-matrix, contracted "
        "without building it (Oseledets 2011, Novikov et al. 2015)",
    ),
    TTConvScheme(
        "tt_conv",
        "a few filters for all channels, then a TT-matrix over the channels (Garipov et al. 2016)",
    ),
    SVDWeightScheme("svd_weight", "any parameter rebuilt from two factors, the SVD of its matrix"),
    TTWeightScheme(
        "tt_weight",
        "the weight rebuilt from a tensor train of its reshape "
        "(Novikov et al. 2015, Garipov et al. 2016)",
    ),
):
    register(_scheme)


def rank_schemes() -> dict[str, Scheme]:
    """Return the schemes whose ranks are chosen layer by layer."""
    return {name: scheme for name, scheme in SCHEMES.items() if not scheme.joint}


def scheme(name: str, options: Mapping[str, Any] | None = None) -> Scheme:
    """Return a scheme by name, with options.

    Raises
    ------
    InvalidArgumentError
        If the name is unknown (the message lists similar names), or it has no such option.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> scheme("tucker2").largest_ranks(describe_layer(nn.Conv2d(8, 16, 3)))
    (8, 16)
    """
    if name not in SCHEMES:
        raise unknown_name("scheme", name, SCHEMES)
    return SCHEMES[name].with_options(options or {})
