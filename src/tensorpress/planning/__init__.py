"""Plans which layers are pressed, by what scheme, and at which ranks."""

from tensorpress.planning.plan import Plan
from tensorpress.planning.plan_from_model import plan_from_model
from tensorpress.planning.planner import check_target, plan
from tensorpress.schemes.layer_plan import LayerPlan
from tensorpress.schemes.registry import SCHEMES

__all__ = [
    "SCHEMES",
    "LayerPlan",
    "Plan",
    "check_target",
    "plan",
    "plan_from_model",
]
