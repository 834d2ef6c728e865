"""The one shot of Kim et al. (2016) as printed: which layers, and how many parameters."""

from pathlib import Path

import torch

from tensorpress.models.zoo import build, load_weights
from tensorpress.ranks.evbmf import evbmf
from tensorpress.runs.recipe import read_recipe
from tensorpress.runs.recipe_plan import plan_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "mnist" / "lenet5-kim-printed.yaml"


def test_layers_ranks_and_parameters(data_root: Path) -> None:
    dense = build("lenet5")
    load_weights(dense, data_root / "lenet_caffe" / "lenet5.safetensors")
    plan = plan_recipe(dense, read_recipe(RECIPE))
    assert [layer.scheme for layer in plan.layers] == [
        *("tucker1_out", "tucker2", "tucker2", "tucker1_in")
    ]
    weights = dict(dense.named_parameters())
    kernel = weights["ip1.weight"].detach().double().reshape(500, 50, 4, 4)
    unfoldings = (kernel.transpose(0, 1).flatten(1), kernel.flatten(1))
    ranks = {layer.name: layer.ranks for layer in plan.layers}
    values = (torch.linalg.svdvals(unfolding) for unfolding in unfoldings)
    shapes = (unfolding.shape for unfolding in unfoldings)
    by_hand = [evbmf(v, *shape).rank for v, shape in zip(values, shapes, strict=True)]
    assert list(ranks["ip1"]) == by_hand

    def tucker2(size: int, inputs: int, outputs: int, r_in: int, r_out: int) -> int:
        return inputs * r_in + size * r_in * r_out + outputs * r_out  # Kim et al., eq. (4)

    (r1,), (r4,) = ranks["conv1"], ranks["ip2"]
    counts = {
        "conv1": r1 * 25 + 20 * r1,
        "conv2": tucker2(25, 20, 50, *ranks["conv2"]),
        "ip1": tucker2(16, 50, 500, *ranks["ip1"]),
        "ip2": 500 * r4 + r4 * 10,
    }
    assert {layer.name: layer.factor_params for layer in plan.layers} == counts
    assert plan.params == sum(counts.values()) + 580 == 10_339
