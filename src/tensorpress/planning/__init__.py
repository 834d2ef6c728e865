"""Planning: which layers are pressed, by what scheme, into which modes and ranks."""

from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.planning.planner import check_target, plan
from tensorpress.schemes.layer_plan import SCHEMES, LayerPlan, PlannedLayer, SchemePlan

__all__ = [
    "SCHEMES",
    "LayerPlan",
    "Plan",
    "PlannedLayer",
    "SchemePlan",
    "check_target",
    "plan",
    "plan_from_model",
]
