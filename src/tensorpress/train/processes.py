"""The processes of a run that ``accelerate launch`` or ``torchrun`` has started."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """Return the state of the launched processes, which the first call connects.

    There is one process unless ``accelerate launch`` or ``torchrun`` started the program.

    Examples
    --------
    >>> processes().process_index
    0
    """
    # By default, accelerate looks for several processes on CPUs only if a flag says so, and
    # otherwise takes each of them for the only one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)
