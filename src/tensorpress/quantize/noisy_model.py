"""A model with noise instead of rounding, learned steps and the bits of its parameters."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tensorpress.codec.model_tensors import stored_tensors
from tensorpress.codec.quantizers import PER_OCTAVE, StepQuantizer
from tensorpress.errors import InvalidArgumentError
from tensorpress.quantize.laplace_prior import LaplacePriors

_MIN_RMS = 1e-3  # for the initial step of a zero tensor, such as a new bias


class RateModel(nn.Module):
    """A model with a learned quantization step and prior for every trained parameter.

    A call computes the model's output with quantized parameters. In eval mode, and in training with
    ``hard``, parameters are rounded to multiples of their steps, which are rounded to the grid of
    `StepQuantizer`; gradients pass straight through. In training without ``hard``, uniform noise of
    one step's width replaces rounding, so that the cost is smooth. After a call, `bits` is the
    information of its parameters.

    All parameters that require a gradient are quantized: weights, factors, biases and parameters of
    norms. Shared parameters count once. Statistics of batch norms are frozen; with
    `tensorpress.quantize.fold_batch_norm.merge_statistics` they take no space.

    Parameters
    ----------
    model : nn.Module
        A model, dense or pressed. Its parameters are the latent values and are trained in place.
    step : float
        Initial step of each parameter, in units of its root mean square.
    steps : mapping of str to float, optional
        Initial steps of some parameters by name, in units of their values.

    Attributes
    ----------
    hard : bool
        Whether parameters are rounded in training too.
    names : list of str
        The names of the quantized parameters.
    bits : Tensor
        The information of the last call's parameters, in bits, shape ().

    Raises
    ------
    InvalidArgumentError
        If no parameter requires a gradient, or one is not finite floating point.

    References
    ----------
    Oktay, Ballé, Singh and Shrivastava, "Scalable model compression by entropy penalized
    reparameterization", ICLR 2020, section 2; Esser et al., "Learned step size quantization", ICLR
    2020.

    Examples
    --------
    >>> rated = RateModel(nn.Linear(8, 2), step=0.25)
    >>> scores = rated(torch.ones(4, 8))
    >>> bool(rated.bits > 0), rated.names
    (True, ['weight', 'bias'])
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        step: float,
        steps: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.model, self.hard = model, False
        latent = {n: t for n, t in stored_tensors(model).items() if t.requires_grad}
        if not latent:
            raise InvalidArgumentError("the model has no parameter that requires a gradient")
        for name, tensor in latent.items():
            if not bool(torch.isfinite(tensor).all()):
                raise InvalidArgumentError(f"parameter {name!r} has NaN or infinite values")
        self.names, self._latent = list(latent), latent
        steps = steps or {}
        initial = [steps.get(name) or _rms(t) * step for name, t in latent.items()]
        self.steps = nn.Parameter(torch.tensor(initial).log())
        in_steps = [t.detach() / s for t, s in zip(latent.values(), initial, strict=True)]
        self.priors = LaplacePriors(in_steps)
        # The index of the parameter of each value in the flat vector of all values.
        counts = torch.tensor([t.numel() for t in latent.values()])
        owners = torch.repeat_interleave(torch.arange(len(latent)), counts)
        self.register_buffer("_owners", owners, persistent=False)
        self.bits = torch.zeros(())
        self.to(next(iter(latent.values())).device)

    def train(self, mode: bool = True) -> "RateModel":
        """Set the mode of all modules except batch norms, whose statistics are frozen."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                module.eval()
        return self

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the model's output with quantized parameters."""
        return functional_call(self.model, self._quantize(), args, kwargs)

    def quantizers(self) -> dict[str, StepQuantizer]:
        """Return the quantizer of every parameter by name, as a file stores it."""
        steps = self.steps.detach().double().exp().tolist()
        return {n: StepQuantizer.nearest(s) for n, s in zip(self.names, steps, strict=True)}

    def round_(self) -> dict[str, StepQuantizer]:
        """Round the model's parameters in place and return their quantizers."""
        quantizers = self.quantizers()
        with torch.no_grad():
            for name, parameter in self._latent.items():
                parameter.copy_(quantizers[name](parameter))
        return quantizers

    def _quantize(self) -> dict[str, Tensor]:
        """Return the quantized parameters by name, and set ``bits`` to their information."""
        flat = torch.cat([tensor.reshape(-1) for tensor in self._latent.values()])
        owners = self.get_buffer("_owners")
        noisy = self.training and not self.hard
        log_steps = self.steps if noisy else _round_to_grid(self.steps)
        steps = log_steps.exp()[owners]
        # v = w / s; v + u with u uniform on ±1/2, or round(v) with the gradient of v
        values = flat / steps
        noise = torch.rand_like(values) - 0.5 if noisy else (values.round() - values).detach()
        values = values + noise
        self.bits = self.priors.bits(values)
        # w = s v
        sizes = [tensor.numel() for tensor in self._latent.values()]
        parts = torch.split(values * steps, sizes)
        return {
            name: part.view(tensor.shape)
            for (name, tensor), part in zip(self._latent.items(), parts, strict=True)
        }


def _rms(tensor: Tensor) -> float:
    """Return the root mean square of a tensor's values, at least 0.001."""
    return max(float(tensor.detach().double().square().mean().sqrt()), _MIN_RMS)


def _round_to_grid(log_steps: Tensor) -> Tensor:
    """Return logarithms of steps rounded to multiples of ln 2 / 8, with the gradient of 1."""
    unit = torch.log(torch.tensor(2.0)) / PER_OCTAVE
    rounded = (log_steps / unit).round() * unit
    return log_steps + (rounded - log_steps).detach()
