"""Planning: which layers are pressed, by what scheme, into which modes and ranks."""

from tensorpress.planning.choose import check_target, plan
from tensorpress.planning.layer_plans import SCHEMES, LayerPlan, PlannedLayer, SchemePlan
from tensorpress.planning.plan import Plan
from tensorpress.planning.read_back import plan_of

__all__ = [
    "SCHEMES",
    "LayerPlan",
    "Plan",
    "PlannedLayer",
    "SchemePlan",
    "check_target",
    "plan",
    "plan_of",
]
