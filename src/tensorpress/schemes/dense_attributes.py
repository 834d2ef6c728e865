"""The public attributes of a dense layer, which other modules and tools read."""

from typing import Any

from tensorpress.schemes.layer_spec import LayerSpec


def dense_attributes(spec: LayerSpec) -> dict[str, Any]:
    """Return the attributes of the layer of a spec, except ``weight`` and ``bias``.

    Padding "valid" is written as zeros.

    Examples
    --------
    >>> from torch import nn
    >>> from tensorpress.schemes.layer_spec import describe_layer
    >>> dense_attributes(describe_layer(nn.Linear(3, 2)))
    {'in_features': 3, 'out_features': 2}
    """
    if spec.inputs_first:
        return {"nx": spec.inputs, "nf": spec.outputs}
    if spec.kind == "Linear":
        return {"in_features": spec.inputs, "out_features": spec.outputs}
    if spec.kind == "Embedding":
        return {
            "num_embeddings": spec.inputs,
            "embedding_dim": spec.outputs,
            "padding_idx": spec.padding_idx,
            "max_norm": None,
            "norm_type": 2.0,
            "scale_grad_by_freq": spec.scale_grad_by_freq,
            "sparse": spec.sparse,
        }
    if not spec.kind.startswith("Conv"):
        return {}
    return {
        "in_channels": spec.inputs,
        "out_channels": spec.outputs,
        "kernel_size": spec.kernel,
        "stride": spec.stride,
        "padding": spec.padding,
        "dilation": spec.dilation,
        "transposed": spec.transposed,
        "output_padding": spec.output_padding,
        "groups": spec.groups,
        "padding_mode": spec.padding_mode,
    }
