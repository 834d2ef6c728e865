"""The ranks a scheme proposes for a layer, and the errors it predicts at them."""

from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_every_scheme import every_scheme, holds_for_every_scheme, samples, taken
from torch import nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.errors import InvalidArgumentError
from tensorpress.schemes.canonical_kernel import layer_kernel
from tensorpress.schemes.layer_spec import describe_layer
from tensorpress.schemes.press_layer import press_layer
from tensorpress.schemes.rank_grid import discarded_energy, thin_grid
from tensorpress.schemes.registry import scheme

BY_SVD = ("channel_svd", "spatial_svd", "spatial_svd_horizontal", "tucker1_in", "tucker1_out")
BY_TT_SVD = ("tensor_train", "tt_conv", "tt_weight")


def seeded(build, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def curve(name, layer, candidates=None):
    """Candidates and their predicted errors, all ranks of a small layer unless given."""
    spec, form = describe_layer(layer), scheme(name)
    found = form.candidates(spec) if candidates is None else candidates
    return found, form.errors(spec, to_working_precision(layer_kernel(layer, spec)), found)


def pressed_error(name, layer, ranks):
    """‖W − Ŵ‖² / ‖W‖² of the pressed layer's weight."""
    weight = layer.weight.detach()
    difference = scheme(name).compose(press_layer(layer, name, ranks)) - weight
    return float(difference.square().sum() / weight.square().sum())


def attainable_ranks(data, name, layer):
    spec = describe_layer(layer)
    largest = scheme(name).largest_ranks(spec)
    ranks = data.draw(st.tuples(*(st.integers(1, most) for most in largest)))
    return scheme(name).attainable(spec, ranks)


@holds_for_every_scheme(8, BY_SVD + BY_TT_SVD)
def test_the_predicted_error_is_that_of_the_pressed_layer(name, data):
    layer = data.draw(taken(name)).layer
    ranks = [attainable_ranks(data, name, layer) for _ in range(3)]
    for chosen, predicted in zip(*curve(name, layer, ranks), strict=True):
        assert predicted == pytest.approx(pressed_error(name, layer, chosen), abs=1e-9)


@holds_for_every_scheme(20, ["tucker2"])
def test_the_hosvd_bounds_what_hooi_from_it_leaves(name, data):
    layer = data.draw(taken(name)).layer
    spec, form = describe_layer(layer), scheme(name)
    kernel = to_working_precision(layer_kernel(layer, spec))
    spectra = form.spectra(spec, kernel)
    ranks = [attainable_ranks(data, name, layer) for _ in range(3)]
    for chosen, bound in zip(*curve(name, layer, ranks), strict=True):
        assert form.factorize(spec, kernel, chosen, spectra).relative_error ** 2 <= bound + 1e-12  # type: ignore[attr-defined]


def test_the_bound_on_tucker2_is_close():
    layer = seeded(lambda: nn.Conv2d(24, 16, 3).double())
    for chosen, bound in list(zip(*curve("tucker2", layer), strict=True))[::20]:
        found = pressed_error("tucker2", layer, chosen)
        assert found <= bound <= 1.1 * found + 1e-12


@pytest.mark.parametrize("name", ["cp", "cp_nls", "cp_corrected"])
def test_cp_errors_are_those_of_the_fit(name):
    layer = seeded(lambda: nn.Conv2d(6, 4, 3, groups=2).double())
    candidates, errors = curve(name, layer, [(1,), (3,)])
    assert errors == [pytest.approx(pressed_error(name, layer, r)) for r in candidates]
    assert errors == sorted(errors, reverse=True)


@holds_for_every_scheme(10)
def test_candidates_are_attainable_ascending_and_smaller_than_the_dense_layer(name, data):
    layer = data.draw(taken(name)).layer
    spec, form = describe_layer(layer), scheme(name)
    round_to = data.draw(st.integers(1, 6))
    found = form.candidates(spec, round_to)
    assert len(set(found)) == len(found)
    params = [form.params(spec, ranks) for ranks in found]
    assert params == sorted(params)
    assert all(number < spec.params for number in params)
    for ranks in found:
        assert form.attainable(spec, ranks) == ranks
        for rank, most in zip(ranks, form.largest_ranks(spec), strict=True):
            assert rank == most or (rank < most and rank % round_to == 0)


@holds_for_every_scheme(10, (*BY_SVD, "tucker2"))
def test_small_layers_miss_no_rank(name, data):
    spec, form = describe_layer(data.draw(taken(name)).layer), scheme(name)
    every = product(*(range(1, most + 1) for most in form.largest_ranks(spec)))
    attainable = {form.attainable(spec, ranks) for ranks in every}
    small = {ranks for ranks in attainable if form.params(spec, ranks) < spec.params}
    assert set(form.candidates(spec)) == small


@pytest.mark.parametrize("name", [*BY_SVD, "tucker2"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_candidates_of_large_layers_are_close_and_few(name, round_to):
    spec = describe_layer(nn.Conv2d(256, 512, 3))
    found = scheme(name).candidates(spec, round_to)
    shares = [scheme(name).params(spec, ranks) / spec.params for ranks in found]
    steps = [high - low for low, high in pairwise(shares)]
    if name == "tucker2":
        assert len(found) <= 24**2
        assert max(steps) < 0.1
    else:
        assert len(found) <= 100
        assert max(steps) <= (0.025 if round_to == 1 else 0.06)
    assert shares[0] < (0.01 if round_to == 1 else 0.04)
    assert shares[-1] > 0.9


@pytest.mark.parametrize("name", ["cp", *BY_TT_SVD])
def test_where_errors_take_decompositions_candidates_are_few(name):
    spec = describe_layer(nn.Conv2d(64, 128, 3))
    found = scheme(name).candidates(spec)
    assert 5 <= len(found) <= 8
    params = [scheme(name).params(spec, ranks) for ranks in found]
    assert params[-1] > 0.9 * spec.params
    assert all(max(high) <= 2.5 * max(low) for low, high in pairwise(found))


def test_of_a_matrix_tucker2_is_its_svd():
    layer = seeded(lambda: nn.Conv2d(12, 20, 1, bias=False).double())
    candidates, errors = curve("tucker2", layer)
    assert all(into == out for into, out in candidates)
    _, expected = curve("channel_svd", layer, [(into,) for into, _ in candidates])
    assert errors == pytest.approx(expected, abs=1e-12)


def test_ranks_too_coarse_to_be_smaller_leave_no_candidates():
    spec = describe_layer(nn.Linear(20, 20))
    assert scheme("channel_svd").candidates(spec, 16) == []
    assert scheme("tucker2").candidates(describe_layer(nn.Conv2d(4, 4, 3)), 16) == []


@every_scheme
def test_candidates_are_no_multiples_of_nothing(name):
    spec = next(
        describe_layer(layer)
        for layer in samples()
        if not scheme(name).refusal(describe_layer(layer))
    )
    with pytest.raises(InvalidArgumentError, match="multiples of 1 or more, not of 0"):
        scheme(name).candidates(spec, 0)


@every_scheme
def test_zero_weights_have_no_error_at_any_rank(name):
    for layer in samples():
        if scheme(name).refusal(describe_layer(layer)) is None:
            torch.nn.init.zeros_(layer.weight)
            candidates = scheme(name).candidates(describe_layer(layer))
            assert curve(name, layer, candidates)[1] == [0.0] * len(candidates)
            assert curve(name, layer, [])[1] == []


@pytest.mark.parametrize("name", [*BY_SVD, "tucker2", *BY_TT_SVD])
def test_neither_the_scale_nor_a_default_device_matters(name):
    layer = seeded(lambda: nn.Conv2d(8, 6, (3, 2), bias=False))
    candidates, errors = curve(name, layer)
    with torch.device("meta"):
        assert curve(name, layer) == (candidates, errors)
    with torch.no_grad():
        layer.weight.mul_(1024.0)
    assert curve(name, layer)[1] == pytest.approx(errors, rel=1e-9, abs=1e-12)


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(0, 9), min_size=3, max_size=3), min_size=1, max_size=4))
def test_what_is_discarded_is_counted_over_all_matrices(groups):
    values = torch.tensor(groups, dtype=torch.float64).sort(descending=True).values
    total = float(values.square().sum())
    for rank, found in enumerate(discarded_energy(values, range(4))):
        expected = float(values[:, rank:].square().sum())
        assert found * total == pytest.approx(expected, rel=1e-12)


def test_ranks_are_thinned_up_to_where_they_fit():
    assert thin_grid(lambda n: (n,), lambda ranks: ranks[0] < 1, 9, (0.5, 1.0)) == []
    assert thin_grid(lambda n: (n,), lambda ranks: ranks[0] < 99, 9, (0.01, 0.02, 1.0)) == [
        (1,),
        (9,),
    ]
