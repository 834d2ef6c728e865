"""The processes of a run started by ``accelerate launch`` or ``torchrun``."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """Return the state of the launched processes; the first call connects them.

    There is one process unless ``accelerate launch`` or ``torchrun`` started several.

    Examples
    --------
    >>> processes().process_index
    0
    """
    # On CPUs, accelerate would connect the processes only if a flag is set, and otherwise treat
    # each as the only one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)
