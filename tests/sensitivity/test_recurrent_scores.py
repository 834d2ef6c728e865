import pytest
import torch
from torch import nn

import tensorpress as tp
from tensorpress.sensitivity.kfac import kfac_scores
from tensorpress.sensitivity.response_energy import response_energies

LAYERS = {
    "lstm": lambda: nn.LSTM(24, 24, num_layers=2, batch_first=True),
    "gru": lambda: nn.GRU(24, 24, bidirectional=True, batch_first=True),
}


@pytest.mark.parametrize("make", LAYERS.values(), ids=LAYERS)
def test_ranks_follow_from_what_recurrent_weights_do_to_the_outputs(make):
    torch.manual_seed(0)
    layer = make().eval()
    x = torch.randn(50, 6, 6) @ torch.randn(6, 24)  # of six directions
    plan = tp.plan(layer, x[:1], scheme="svd_weight", ranks=4)
    for scores in (kfac_scores(layer, [x], scheme="auto"), response_energies(layer, [x])):
        assert scores.layers.keys() == {pressed.name for pressed in plan.layers}
        by_rank = {choice.ranks: choice for choice in scores.layers["weight_ih_l0"]}
        assert by_rank[6,].scheme == "svd_weight"
        assert by_rank[6,].score < 1e-3 * by_rank[3,].score
        by_rank = {choice.ranks: choice for choice in scores.layers["weight_hh_l0"]}
        assert by_rank[6,].score > 1e-2 * by_rank[3,].score
