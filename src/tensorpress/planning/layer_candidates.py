"""The ways in which a layer can be pressed: ranks of one or several schemes, costs and errors."""

from collections.abc import Sequence
from dataclasses import replace

from tensorpress.errors import InvalidArgumentError
from tensorpress.planning.layers import Layer
from tensorpress.ranks import RankRule
from tensorpress.ranks.checks import round_ranks
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.layer_spec import LayerSpec, Sizes
from tensorpress.schemes.scheme import Scheme


def applicable_schemes(layer: Layer, schemes: Sequence[Scheme]) -> tuple[list[Scheme], str]:
    """Return the schemes that can take a layer, and why the others cannot."""
    found, reasons = [], []
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
            found.append(scheme)
    return found, "; ".join(dict.fromkeys(reasons))


def plan_with_ranks(layer: Layer, scheme: Scheme, rule: RankRule, round_to: int = 1) -> LayerPlan:
    """Return the plan of a layer at the ranks of a rule, whatever it costs.

    Only a rule that needs spectra looks at the weight.

    Raises
    ------
    InvalidArgumentError
        For ranks that do not fit, or values that are not there, NaN or infinite.
    """
    spec = layer.spec(scheme)
    spectra = scheme.spectra(spec, layer.kernel(scheme)) if rule.needs_spectra else ()
    largest = scheme.largest_ranks(spec)
    chosen = rule.ranks(spectra, largest)
    scheme.check_ranks(spec, chosen)
    return plan_layer(
        layer, scheme, scheme.attainable(spec, round_ranks(chosen, largest, round_to))
    )


def plan_layer(layer: Layer, scheme: Scheme, ranks: Sizes) -> LayerPlan:
    """Return the plan of a layer at ranks."""
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
    """Return why a layer is better left dense than pressed so, None where it is not.

    A pressed layer has fewer parameters than the dense one, and where its calls are known no more
    multiplications; a table that is looked up has none to lose.
    """
    if plan.factor_params >= plan.dense_params:
        return (
            f"ranks {plan.ranks} make {plan.factor_params:,} parameters of its "
            f"{plan.dense_params:,}: not smaller"
        )
    if plan.dense_macs and plan.macs > plan.dense_macs:
        return (
            f"ranks {plan.ranks} make {plan.macs:,} MACs of its {plan.dense_macs:,}: "
            "smaller, but slower"
        )
    return None


def candidate_plans(layer: Layer, schemes: Sequence[Scheme], round_to: int = 1) -> list[LayerPlan]:
    """Return plans of a layer at all ranks worth considering, with their errors.

    Those that make it larger or multiply more are left out. The weight is decomposed once a
    scheme, for schemes without a closed form once a rank.

    Raises
    ------
    InvalidArgumentError
        For values that are not there, NaN or infinite.
    """
    spec, kernel = layer.spec(), None
    found = []
    for scheme in _distinct(spec, schemes):
        plans = [plan_layer(layer, scheme, ranks) for ranks in scheme.candidates(spec, round_to)]
        plans = [plan for plan in plans if refuse_no_gain(plan) is None]
        if not plans:
            continue
        kernel = layer.kernel() if kernel is None else kernel
        errors = scheme.errors(spec, kernel, [plan.ranks for plan in plans])
        found += [
            replace(plan, error=max(squared, 0.0) ** 0.5)
            for plan, squared in zip(plans, errors, strict=True)
        ]
    return found


def _distinct(spec: LayerSpec, schemes: Sequence[Scheme]) -> Sequence[Scheme]:
    """Return the schemes that differ for a layer: truncated SVDs of a matrix do not."""
    if max(spec.kernel, default=1) > 1:
        return schemes
    ranked = [scheme for scheme in schemes if len(scheme.largest_ranks(spec)) == 1]
    return ranked[:1] or schemes[:1]
