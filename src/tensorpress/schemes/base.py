"""What a scheme answers: whether it applies, its ranks and exact cost, and the pressed layer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import sqrt
from operator import index
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.ranks import RankRule, check_ranks, parse_rank_rule, round_ranks
from tensorpress.schemes import stages as chains
from tensorpress.schemes.chain_builder import PressedLayer, balance_kernels, dense_layer, fill_chain
from tensorpress.schemes.layer_spec import (
    LayerSpec,
    Sizes,
    describe_layer,
    kernel_to_weight,
    spec_of,
    weight_spec,
    weight_to_kernel,
)
from tensorpress.schemes.parametrization import Factors, Options
from tensorpress.schemes.pressed_layer import Pressed, pressed_form, weight_shape
from tensorpress.schemes.rank_grid import COARSE, thin_grid
from tensorpress.schemes.stages import Stage

Ranks = int | float | str | Sequence[int] | RankRule
"""What a user gives for ranks; see `tensorpress.ranks.parse_rank_rule`."""

_MOST_STEPS, _EXACT = 100, 1e-9
"""How often a draw is scaled at most, and how near to the deviation wanted is near enough."""


@dataclass(frozen=True)
class Cost:
    """Parameters of a layer, its bias included, and multiply-accumulates for one example."""

    params: int
    macs: int


@dataclass(frozen=True)
class Scheme(ABC):
    """How a decomposition lives in a layer.

    Parameters
    ----------
    name : str
        The name it goes by.
    summary : str
        One line on what it does, with its source.

    Attributes
    ----------
    form : {"layer", "weight"}
        Whether other layers take a layer's place, or the layer stays and its weight is rebuilt.
    parts : tuple of float
        How finely `candidates` divides the ranks.
    option_names : tuple of str
        The fields that a plan may set for a layer. They have defaults, whose types are those of
        plain data: bool, int, float, str or tuple of int.
    of_weight : bool
        Whether it looks at a weight alone, so that it takes any layer that has one.
    joint : bool
        Whether ranks and options of all layers are chosen together, by `allocate`, and not for
        each layer by a rank rule.
    shared : bool
        Whether the layers of a plan hold their first factor in common. They are then decomposed
        together.
    """

    name: str
    summary: str
    form: ClassVar[Literal["layer", "weight"]] = "layer"
    parts: ClassVar[tuple[float, ...]] = COARSE
    option_names: ClassVar[tuple[str, ...]] = ()
    of_weight: ClassVar[bool] = False
    joint: ClassVar[bool] = False
    shared: ClassVar[bool] = False

    @property
    def options(self) -> Options:
        """The options that are not at their defaults."""
        values = {name: getattr(self, name) for name in self.option_names}
        return {name: v for name, v in values.items() if v != getattr(type(self), name)}

    def with_options(self, options: Mapping[str, Any]) -> "Scheme":
        """Return the scheme with options of a plan: plain data, with lists for tuples.

        Raises
        ------
        InvalidArgumentError
            For a name that is no option, or a value of another type than its default.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tt_weight").with_options({"row_modes": [4, 5], "column_modes": [6, 5]}).options
        {'row_modes': (4, 5), 'column_modes': (6, 5)}
        """
        for name in options:
            if name not in self.option_names:
                raise unknown_name("key", name, ("ranks", "scheme", *self.option_names))
        values = {n: _option(n, v, getattr(type(self), n)) for n, v in options.items()}
        return replace(self, **values) if values else self

    def read_entry(
        self, spec: LayerSpec, options: Mapping[str, Any], ranks: Ranks
    ) -> tuple["Scheme", Ranks]:
        """Return the scheme with the options of a user's entry for a layer, and its ranks.

        Here is where an entry may be written shorter than a plan.
        """
        return self.with_options(options), ranks

    def allocate(
        self, specs: Mapping[str, LayerSpec], params: int
    ) -> dict[str, tuple["Scheme", Sizes]]:
        """Return options and ranks of layers that together have at most some parameters.

        For `joint` schemes. Layers that are better left dense are left out.

        Parameters
        ----------
        specs : mapping of str to LayerSpec
            The layers by name.
        params : int
            Most parameters of their weights together, those left dense included.

        Raises
        ------
        InvalidArgumentError
            Where there are no so few.
        """
        raise NotImplementedError

    def describe(self, layer: nn.Module) -> LayerSpec:
        """Return what the scheme has to know of a dense layer; see `describe_layer`.

        Raises
        ------
        InvalidArgumentError
            For a layer that cannot be pressed.
        """
        return self.spec_of(layer) if self.of_weight else describe_layer(layer)

    def spec_of(self, layer: nn.Module) -> LayerSpec:
        """Return what the scheme has to know of a layer, dense or pressed, whatever is about it."""
        if self.of_weight:
            return weight_spec(weight_shape(layer) or ())
        return layer.spec if isinstance(layer, Pressed) else spec_of(layer)

    @abstractmethod
    def refusal(self, spec: LayerSpec) -> str | None:
        """Return why the scheme cannot take a layer, None where it can."""

    @abstractmethod
    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks at which the pressed layer equals the dense one."""

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Return ranks without what no decomposition can use because another rank is small."""
        return ranks

    def candidates(self, spec: LayerSpec, round_to: int = 1) -> list[Sizes]:
        """Return the ranks worth considering for a layer, cheapest first.

        They are attainable, multiples of ``round_to`` or the largest rank, and the layer pressed
        at them has fewer parameters than the dense one. Several ranks are the same number, or the
        largest rank where that is less: trains of trained weights mostly have less error so than
        at equal parts of the largest ranks.

        Raises
        ------
        InvalidArgumentError
            For ``round_to`` below 1.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tensor_train").candidates(describe_layer(nn.Conv2d(64, 32, 3)), round_to=16)
        [(16, 16, 16), (32, 32, 32), (48, 48, 32)]
        """
        largest = self.largest_ranks(spec)

        def up_to(number: int) -> Sizes:
            capped = [min(number, most) for most in largest]
            return self.attainable(spec, round_ranks(capped, largest, round_to))

        return thin_grid(
            up_to, lambda ranks: self.params(spec, ranks) < spec.params, max(largest), self.parts
        )

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return ‖K − K̂‖² / ‖K‖² of the layer pressed at each of some ranks.

        From a spectrum where the scheme is an SVD, for tucker2 a close bound from above, for
        others by decomposing, every time.

        Parameters
        ----------
        spec : LayerSpec
            Of a layer that the scheme takes.
        kernel : Tensor
            Its canonical kernel in the working precision.
        candidates : sequence of tuple of int
            Attainable ranks.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> spec = describe_layer(nn.Linear(2, 2, bias=False))
        >>> kernel = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]).double()
        >>> scheme("channel_svd").errors(spec, kernel, [(1,), (2,)])
        [0.2, 0.0]
        """
        energy = float(kernel.square().sum())
        if not energy:
            return [0.0] * len(candidates)
        weight = kernel_to_weight(kernel, spec)
        layer = dense_layer(spec, like=weight)
        layer.load_state_dict({"weight": weight}, strict=False)
        found = []
        for ranks in candidates:
            pressed = self._signed(self.decompose(layer, spec, kernel, ranks, ()))
            found.append(float((self.compose(pressed) - weight).square().sum()) / energy)
        return found

    @abstractmethod
    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return a spectrum a rank of a canonical kernel, or none where a rank is of no matrix."""

    @abstractmethod
    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the pressed layer, its bias included."""

    @abstractmethod
    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates for one example with the given spatial sizes."""

    def peak_values(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the most values that the factors, or a step of composing them, take at once."""
        return self.params(spec, ranks)

    def shared_params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return how many of its parameters a layer holds in common with others of a plan."""
        return 0

    def factor_name(self, number: int) -> str:
        """Return what a factor of a rebuilt weight is called, for people."""
        return f"core{number}"

    @abstractmethod
    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return an uninitialized pressed layer, on the device and in the dtype of ``like``."""

    @abstractmethod
    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> nn.Module:
        """Return the pressed layer at checked ranks.

        ``kernel`` is the layer's canonical kernel in the working precision, ``spectra`` are
        those of `spectra`, or none where no rule needed them.
        """

    def compose(self, pressed: nn.Module) -> Tensor:
        """Return the dense weight, as torch holds it, that a layer pressed by this stands for.

        Raises
        ------
        InvalidArgumentError
            For a layer that this scheme has not pressed.
        """
        form = pressed_form(pressed)
        if form is None or form.scheme != self.name:
            raise InvalidArgumentError(f"this {type(pressed).__name__} is not of {self.name}")
        if isinstance(form, Pressed):
            return form.dense_weight().detach()
        weight = pressed.weight
        assert isinstance(weight, Tensor)
        return weight.detach()

    def check(self, spec: LayerSpec) -> None:
        """Raise an `InvalidArgumentError` with the reason if the scheme cannot take a layer."""
        reason = self.refusal(spec)
        if reason is not None:
            raise InvalidArgumentError(f"{self.name} cannot take this {spec.kind}: {reason}")

    def check_ranks(self, spec: LayerSpec, ranks: Sizes) -> None:
        """Raise an `InvalidArgumentError` unless a layer that the scheme takes can have ranks."""
        check_ranks(ranks, self.largest_ranks(spec))

    def cost(self, layer: nn.Module | LayerSpec, ranks: Ranks, sizes: Sizes = ()) -> Cost:
        """Return the exact cost of a layer pressed at given ranks, computing nothing heavy.

        Parameters
        ----------
        layer : nn.Module or LayerSpec
            The dense layer; its values matter only to rules that look at spectra.
        ranks
            As for `press_layer`.
        sizes : tuple of int
            Spatial sizes of its input; for a Linear or an Embedding the positions of an example.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tucker2").cost(nn.Conv2d(64, 64, 3, padding=1), (16, 16), (8, 8))
        Cost(params=4416, macs=278528)
        """
        spec = layer if isinstance(layer, LayerSpec) else self.describe(layer)
        self.check(spec)
        if len(sizes) != spec.order and spec.order:
            raise InvalidArgumentError(
                f"a {spec.kind} needs the {spec.order} spatial sizes of its input, got {sizes}"
            )
        chosen = self.choose_ranks(layer, ranks)
        return Cost(self.params(spec, chosen), self.macs(spec, chosen, sizes))

    def choose_ranks(self, layer: nn.Module | LayerSpec, ranks: Ranks) -> Sizes:
        """Return the ranks that a rule chooses for a layer; a spectrum is all it may compute.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tucker2").choose_ranks(nn.Conv2d(64, 32, 3), 0.25)
        (16, 8)
        """
        spec = layer if isinstance(layer, LayerSpec) else self.describe(layer)
        self.check(spec)
        rule, kernel = parse_rank_rule(ranks), None
        if rule.needs_spectra:
            if isinstance(layer, LayerSpec):
                raise InvalidArgumentError(f"{ranks!r} needs the layer itself, not only its spec")
            _check_values(layer)
            kernel = _kernel(layer, spec)
        return self._choose(spec, rule, kernel)[0]

    def press(self, layer: nn.Module, ranks: Ranks) -> nn.Module:
        """Return a layer pressed; see `press_layer`."""
        spec = self.describe(layer)
        self.check(spec)
        _check_values(layer)
        kernel = _kernel(layer, spec)
        chosen, spectra = self._choose(spec, parse_rank_rule(ranks), kernel)
        pressed = self._signed(self.decompose(layer, spec, kernel, chosen, spectra))
        keep_gradients(pressed, layer)
        return pressed.train(layer.training)

    def build(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return the `skeleton` of a pressed layer, which tells the scheme's options."""
        return self._signed(self.skeleton(spec, ranks, like=like))

    def draw(
        self, spec: LayerSpec, ranks: Sizes, weight: Tensor, init: str, generator: torch.Generator
    ) -> Factors:
        """Draw all factors of a layer from one normal distribution.

        Their deviation is such that the weight they stand for has exactly the initializer's.

        Parameters
        ----------
        spec : LayerSpec
            The layer.
        ranks : tuple of int
            Its ranks.
        weight : Tensor
            Gives shape, dtype and device.
        init : {"glorot", "kaiming"}
            See `initial_std`.
        generator : torch.Generator
            On the CPU.

        Returns
        -------
        tuple of Tensor
            The factors, and the buffers of layers that have some.
        """
        # In half precision a product of draws of deviation 1 might overflow.
        pressed = self.build(spec, ranks, like=torch.empty(0, dtype=torch.float64))
        factors = layer_factors(pressed)
        with torch.no_grad():
            for factor in factors:
                factor.copy_(torch.randn(factor.shape, generator=generator, device="cpu"))
            for part in pressed.modules():
                if isinstance(part, nn.Embedding) and part.padding_idx is not None:
                    part.weight[part.padding_idx].zero_()
            self._scale(pressed, initial_std(weight, init))
        buffers = (buffer.to(weight.device) for buffer in pressed.buffers())
        return (*(factor.detach().to(weight) for factor in factors), *buffers)

    def decompose_together(
        self, layers: Sequence["PlannedLayer"], weights: Sequence[Tensor]
    ) -> list[Factors]:
        """Return the factors of layers that share the first of them: for `shared` schemes."""
        raise NotImplementedError

    def draw_together(
        self,
        layers: Sequence["PlannedLayer"],
        weights: Sequence[Tensor],
        init: str,
        generators: Sequence[torch.Generator],
    ) -> list[Factors]:
        """Draw the factors of layers that share the first of them; see `draw`."""
        raise NotImplementedError

    def _signed(self, pressed: nn.Module) -> nn.Module:
        """Have a pressed layer tell its options."""
        form = pressed_form(pressed)
        if form is not None and self.options:
            form.options = self.options
        return pressed

    def _scale(self, pressed: nn.Module, rms: float) -> None:
        """Multiply all factors by one number, so that the weight has a root mean square."""
        factors = layer_factors(pressed)
        for _ in range(_MOST_STEPS):
            size = float(self.compose(pressed).square().mean().sqrt())
            if size == 0 or abs(size / rms - 1) < _EXACT:
                return
            # Exact for a product of all factors; a sum of products gets nearer with every step.
            for factor in factors:
                factor.mul_((rms / size) ** (1 / len(factors)))

    def _choose(
        self, spec: LayerSpec, rule: RankRule, kernel: Tensor | None
    ) -> tuple[Sizes, tuple[Spectrum, ...]]:
        spectra: tuple[Spectrum, ...] = ()
        if rule.needs_spectra and kernel is not None:
            spectra = self.spectra(spec, kernel)
        largest = self.largest_ranks(spec)
        chosen = rule.ranks(spectra, largest)
        self.check_ranks(spec, chosen)
        return self.attainable(spec, chosen), spectra


class PlannedLayer(Protocol):
    """What a scheme has to know of the plan of a layer; see `LayerPlan`."""

    @property
    def method(self) -> Scheme:
        """The scheme with the layer's options."""

    @property
    def spec(self) -> LayerSpec:
        """The dense layer."""

    @property
    def ranks(self) -> Sizes:
        """The ranks."""


@dataclass(frozen=True)
class Factorized:
    """Canonical kernels of a chain, and ‖K − K̂‖ / ‖K‖ of what they stand for."""

    kernels: list[Tensor]
    relative_error: float


class LayerScheme(Scheme):
    """A scheme whose pressed layer is a chain of stock layers: two pure functions and a matrix."""

    @abstractmethod
    def stages(self, spec: LayerSpec, ranks: Sizes) -> tuple[Stage, ...]:
        """Return the shapes of the chain."""

    @abstractmethod
    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Return the kernels of the chain for a canonical kernel."""

    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the chain, its bias included."""
        return chains.params(spec, self.stages(spec, ranks))

    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of the chain for one example."""
        return chains.macs(spec, self.stages(spec, ranks), sizes)

    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> PressedLayer:
        """Return the chain uninitialized."""
        return PressedLayer(
            spec, self.stages(spec, ranks), scheme=self.name, ranks=ranks, like=like
        )

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return the squared relative errors of the chains' kernels."""
        return [self.factorize(spec, kernel, r, ()).relative_error ** 2 for r in candidates]

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> PressedLayer:
        """Return the chain for a layer: its values, dtype, device, bias and requires_grad."""
        weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
        assert weight is not None
        found = self.factorize(spec, kernel, ranks, spectra)
        pressed = self.skeleton(spec, ranks, like=weight)
        fill_chain(list(pressed), balance_kernels(found.kernels), bias)
        pressed.relative_error = found.relative_error
        return pressed


def initial_std(weight: Tensor, init: str) -> float:
    """Return the standard deviation that Glorot's or Kaiming's initializer gives a dense weight.

    Parameters
    ----------
    weight : Tensor
        (out, in, *kernel) or (out, in).
    init : {"glorot", "kaiming"}
        Glorot & Bengio (2010): √(2/(fan_in+fan_out)); He et al. (2015): √(2/fan_in).

    Examples
    --------
    >>> initial_std(torch.empty(30, 50), "kaiming")
    0.2
    """
    fan_out, fan_in = (weight.shape[axis] * weight[0, 0].numel() for axis in (0, 1))
    return sqrt(2 / (fan_in + fan_out)) if init == "glorot" else sqrt(2 / fan_in)


def _option(name: str, value: Any, default: Any) -> Any:
    """Return a plain value as an option of the type of its default."""
    if isinstance(default, tuple):
        try:
            sizes = tuple(index(size) for size in value if not isinstance(size, bool))
            if len(sizes) == len(value) and min(sizes, default=1) >= 1:
                return sizes
        except TypeError:
            pass
        raise InvalidArgumentError(f"{name} are whole numbers of at least 1, not {value!r}")
    if type(value) is not type(default):
        raise InvalidArgumentError(f"{name} is of type {type(default).__name__}, and not {value!r}")
    return value


def _kernel(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """Return the canonical kernel of a dense layer in the working precision."""
    weight = layer.get_parameter("weight").detach()
    return to_working_precision(weight_to_kernel(weight, spec))


def _check_values(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.is_meta:
            raise InvalidArgumentError(f"the layer's {name} is on the meta device: no values")
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidArgumentError(f"the layer's {name} has NaN or infinite values")


def layer_bias(pressed: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer pressed in either form, where there is one."""
    return pressed.held_bias() if isinstance(pressed, Pressed) else pressed._parameters.get("bias")


def layer_factors(pressed: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of a pressed layer but its bias."""
    bias = layer_bias(pressed)
    return [parameter for parameter in pressed.parameters() if parameter is not bias]


def keep_gradients(pressed: nn.Module, layer: nn.Module) -> None:
    """Require gradients of the factors as of the weight, and of the bias as of the bias."""
    pressed.requires_grad_(layer.get_parameter("weight").requires_grad)
    held, bias = layer_bias(pressed), layer._parameters.get("bias")
    if held is not None and bias is not None:
        held.requires_grad_(bias.requires_grad)
