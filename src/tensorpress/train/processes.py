"""The processes a run is shared among."""

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def processes() -> PartialState:
    """Return the state of the launched processes, joining them on first use.

    One process if the program was not started by ``accelerate launch`` or ``torchrun``.

    Examples
    --------
    >>> processes().process_index
    0
    """
    # Left to itself accelerate looks for several processes on CPUs only when told to, and else
    # takes each of them for a single one.
    cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or not torch.accelerator.is_available()
    return PartialState(cpu=cpu)
