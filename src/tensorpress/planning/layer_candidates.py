"""Plans of a single layer: ranks of one or several schemes, with costs and errors."""

from collections.abc import Sequence
from dataclasses import replace

from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layers import Layer
from tensorpress.ranks import RankRule
from tensorpress.ranks.checks import round_ranks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Scheme
from tensorpress.schemes.svd_weight import SVDWeightScheme
from tensorpress.utils.one_thread import one_thread


def applicable_schemes(layer: Layer, schemes: Sequence[Scheme]) -> tuple[list[Scheme], str]:
    """Return the schemes that can press a layer, and why the others cannot."""
    applicable, reasons = [], []
    for scheme in schemes:
        try:
            refusal = scheme.refusal(layer.spec(scheme))
        except InvalidArgumentError as error:
            reasons.append(str(error))
            continue
        obstacle = layer.obstacle(scheme)
        if obstacle is not None:
            reasons.append(obstacle)
        elif refusal is not None:
            reasons.append(f"{scheme.name} cannot take it: {refusal}")
        else:
            applicable.append(scheme)
    # A layer scheme is as exact as svd_weight and multiplies less.
    if any(scheme.form == "layer" for scheme in applicable):
        applicable = [scheme for scheme in applicable if not isinstance(scheme, SVDWeightScheme)]
    return applicable, "; ".join(dict.fromkeys(reasons))


def plan_with_ranks(layer: Layer, scheme: Scheme, rule: RankRule, round_to: int = 1) -> LayerPlan:
    """Return the plan of a layer at the ranks of a rule, even if it saves nothing.

    Parameters
    ----------
    layer : Layer
        The layer.
    scheme : Scheme
        A scheme that can press it.
    rule : RankRule
        The rule of the ranks. The weight is read only if the rule needs spectra.
    round_to : int
        Ranks are multiples of it.

    Raises
    ------
    InvalidArgumentError
        If ranks do not fit, or the weight has no finite values.
    """
    spec = layer.spec(scheme)
    spectra: Sequence[Spectrum] = ()
    if rule.needs_spectra:
        kernel = layer.kernel(scheme)
        with one_thread(kernel):
            spectra = scheme.spectra(spec, kernel)
    largest = scheme.largest_ranks(spec)
    ranks = rule.ranks(spectra, largest)
    scheme.check_ranks(spec, ranks)
    return plan_layer(layer, scheme, scheme.attainable(spec, round_ranks(ranks, largest, round_to)))


def plan_layer(layer: Layer, scheme: Scheme, ranks: Sizes) -> LayerPlan:
    """Return the plan of a layer by a scheme at these ranks."""
    return LayerPlan(
        layer.name,
        scheme.name,
        layer.spec(scheme),
        ranks,
        scheme.options,
        calls=() if scheme.of_weight else layer.calls,
        itemsize=layer.itemsize,
    )


def refuse_no_gain(plan: LayerPlan) -> str | None:
    """Return why a plan saves nothing over the dense layer, or None.

    A pressed layer must have fewer parameters and, if its calls are known, no more multiplications.
    Looking up an embedding takes no multiplications.
    """
    if plan.factor_params >= plan.dense_params:
        return (
            f"ranks {plan.ranks} give {plan.factor_params:,} parameters instead of "
            f"{plan.dense_params:,}: not smaller"
        )
    if plan.dense_macs and plan.macs > plan.dense_macs:
        return (
            f"ranks {plan.ranks} give {plan.macs:,} MACs instead of {plan.dense_macs:,}: "
            "smaller, but slower"
        )
    return None


def candidate_plans(layer: Layer, schemes: Sequence[Scheme], round_to: int = 1) -> list[LayerPlan]:
    """Return plans of a layer at all ranks worth considering, with their errors.

    Plans that make the layer larger or slower are left out. The weight is decomposed once per
    scheme, or once per rank if the scheme has no closed form for errors.

    Parameters
    ----------
    layer : Layer
        The layer.
    schemes : sequence of Scheme
        Schemes that can press it.
    round_to : int
        Ranks are multiples of it.

    Raises
    ------
    InvalidArgumentError
        If the weight has no finite values.
    """
    spec, kernel, result = layer.spec(), None, []
    for scheme in _distinct_schemes(spec, schemes):
        plans = [plan_layer(layer, scheme, ranks) for ranks in scheme.candidates(spec, round_to)]
        plans = [plan for plan in plans if refuse_no_gain(plan) is None]
        if not plans:
            continue
        kernel = layer.kernel() if kernel is None else kernel
        with one_thread(kernel):
            errors = scheme.errors(spec, kernel, [plan.ranks for plan in plans])
        result += [
            replace(plan, error=max(squared, 0.0) ** 0.5)
            for plan, squared in zip(plans, errors, strict=True)
        ]
    return result


def _distinct_schemes(spec: LayerSpec, schemes: Sequence[Scheme]) -> Sequence[Scheme]:
    """Return the schemes that differ for a layer; for a matrix all SVDs are equal."""
    if max(spec.kernel, default=1) > 1:
        return schemes
    ranked = [scheme for scheme in schemes if len(scheme.largest_ranks(spec)) == 1]
    return ranked[:1] or schemes[:1]
