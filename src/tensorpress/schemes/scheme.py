"""The base class of schemes: the layers they accept, ranks, exact cost and pressed layers."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from math import ceil
from typing import Any, ClassVar, Literal, Protocol

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError, unknown_name
from tensorpress.ranks import RankRule, check_ranks, parse_rank_rule, round_ranks
from tensorpress.schemes.canonical_kernel import kernel_to_weight, layer_kernel
from tensorpress.schemes.cast_error import measure_cast_error
from tensorpress.schemes.chain_builder import dense_layer
from tensorpress.schemes.layer_spec import (
    LayerSpec,
    Sizes,
    describe_layer,
    describe_weight,
    read_spec,
    weight_spec,
)
from tensorpress.schemes.options import Options, parse_option
from tensorpress.schemes.parametrization import Factors
from tensorpress.schemes.pressed_layer import (
    Pressed,
    copy_bias,
    copy_requires_grad,
    layer_factors,
    pressed_form,
    weight_shape,
)
from tensorpress.schemes.random_init import draw_factors, initial_std
from tensorpress.schemes.rank_grid import COARSE, thin_grid
from tensorpress.schemes.stages import balance_kernels
from tensorpress.utils.one_thread import one_thread

Ranks = int | float | str | Sequence[int] | RankRule
"""All forms of ranks that users may pass; see `tensorpress.ranks.parse_rank_rule`."""


@dataclass(frozen=True)
class Cost:
    """Parameters of a layer, its bias included, and multiply-accumulates for one example."""

    params: int
    macs: int


class PlannedLayer(Protocol):
    """The part of a `LayerPlan` that schemes use."""

    @property
    def method(self) -> "Scheme":
        """Return the scheme with the layer's options."""

    @property
    def spec(self) -> LayerSpec:
        """Return the dense layer."""

    @property
    def ranks(self) -> Sizes:
        """Return the ranks."""


@dataclass(frozen=True)
class Factorized:
    """Factors of a canonical kernel K, and the relative error ‖K − K̂‖ / ‖K‖ of their product."""

    factors: Sequence[Tensor]
    relative_error: float


@dataclass(frozen=True)
class Scheme(ABC):
    """How a decomposition is built into a layer.

    A scheme sees a layer as its `LayerSpec` and, if values matter, its canonical kernel (groups,
    out, in, *kernel). Ranks are a tuple, in the order of the scheme's paper.

    Parameters
    ----------
    name : str
        Name of the scheme.
    summary : str
        One line that says what the scheme does, with its source.

    Attributes
    ----------
    form : {"layer", "weight"}
        Whether other layers replace the layer, or it stays and its weight is rebuilt.
    parts : tuple of float
        How finely `candidates` divides the ranks.
    option_names : tuple of str
        Fields that a plan may set for a layer. Their defaults are of type bool, int, float, str or
        tuple of int.
    of_weight : bool
        Whether the scheme needs only the weight, so that it takes any layer that has one.
    joint : bool
        Whether `allocate` chooses ranks and options of all layers together, instead of a rank rule
        layer by layer.
    shared : bool
        Whether the layers of a plan share their first factor, and are decomposed together.
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
        """Return the scheme with options of a plan, where lists stand for tuples.

        Raises
        ------
        InvalidArgumentError
            If there is no such option, or a value has another type than its default.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tt_weight").with_options({"row_modes": [4, 5], "column_modes": [6, 5]}).options
        {'row_modes': (4, 5), 'column_modes': (6, 5)}
        """
        for name in options:
            if name not in self.option_names:
                raise unknown_name("key", name, ("ranks", "scheme", *self.option_names))
        values = {n: parse_option(n, v, getattr(type(self), n)) for n, v in options.items()}
        return replace(self, **values) if values else self

    def read_entry(
        self, spec: LayerSpec, options: Mapping[str, Any], ranks: Ranks
    ) -> tuple["Scheme", Ranks]:
        """Return the scheme and the ranks for a user's override of a layer.

        A scheme that accepts shorthand in overrides completes it here.

        Parameters
        ----------
        spec : LayerSpec
            The layer.
        options : mapping of str to object
            Options as the user wrote them.
        ranks
            Ranks as the user wrote them.
        """
        return self.with_options(options), ranks

    def allocate(
        self, specs: Mapping[str, LayerSpec], params: int
    ) -> dict[str, tuple["Scheme", Sizes]]:
        """Choose options and ranks of layers that together have at most ``params`` parameters.

        Only `joint` schemes have this method. Layers that are better dense are left out.

        Parameters
        ----------
        specs : mapping of str to LayerSpec
            The layers by name.
        params : int
            Most parameters of all weights together, including those that stay dense.

        Raises
        ------
        InvalidArgumentError
            If the layers cannot have so few parameters.
        """
        raise NotImplementedError

    def describe(self, layer: nn.Module, key: str = "weight") -> LayerSpec:
        """Return the spec of a weight of a dense layer.

        A scheme in weight form takes any parameter; see `describe_weight`. Others take the weight
        of layers that they can replace; see `describe_layer`.

        Raises
        ------
        InvalidArgumentError
            If the layer cannot be pressed.
        """
        if self.of_weight:
            return self.read_spec(layer, key)
        if self.form == "weight":
            return describe_weight(layer, key)
        if key != "weight":
            kind = type(layer).__name__
            raise InvalidArgumentError(f"{key} of a {kind} can only be rebuilt: use svd_weight")
        return describe_layer(layer)

    def read_spec(self, layer: nn.Module, key: str = "weight") -> LayerSpec:
        """Return the spec of a layer, dense or pressed, without checking it."""
        if self.of_weight:
            return weight_spec(weight_shape(layer, key) or ())
        form = pressed_form(layer, key)
        return read_spec(layer) if form is None or form.spec is None else form.spec

    @abstractmethod
    def refusal(self, spec: LayerSpec) -> str | None:
        """Return why the scheme cannot take a layer, or None if it can."""

    @abstractmethod
    def largest_ranks(self, spec: LayerSpec) -> Sizes:
        """Return the ranks at which the pressed layer equals the dense one."""

    def attainable(self, spec: LayerSpec, ranks: Sizes) -> Sizes:
        """Lower ranks that no decomposition can use because another rank is small."""
        return ranks

    def candidates(self, spec: LayerSpec, round_to: int = 1) -> list[Sizes]:
        """Return the ranks worth considering for a layer, cheapest first.

        They are attainable, multiples of ``round_to`` or the largest rank, and give fewer
        parameters than the dense layer. If a scheme has several ranks, all are the same number,
        cut to the largest rank: for trained weights, tensor trains mostly have less error this way
        than at equal fractions of the largest ranks.

        Raises
        ------
        InvalidArgumentError
            If ``round_to`` is below 1.

        Examples
        --------
        >>> from tensorpress.schemes.registry import scheme
        >>> scheme("tensor_train").candidates(describe_layer(nn.Conv2d(64, 32, 3)), round_to=16)
        [(16, 16, 16), (32, 32, 32), (48, 48, 32)]
        """
        largest = self.largest_ranks(spec)

        def round_up(number: int) -> Sizes:
            ranks = round_ranks([min(number, rank) for rank in largest], largest, round_to)
            return self.attainable(spec, ranks)

        def fits(ranks: Sizes) -> bool:
            return self.params(spec, ranks) < spec.params

        return thin_grid(round_up, fits, max(largest), self.parts)

    def candidate_pairs(
        self, spec: LayerSpec, parts: Sequence[float], round_to: int
    ) -> list[Sizes]:
        """Return candidates that combine fractions of two ranks, cheapest first."""
        sides = (
            round_ranks([ceil(part * rank) for part in parts], [rank] * len(parts), round_to)
            for rank in self.largest_ranks(spec)
        )
        pairs = (pair for pair in set(product(*sides)) if self.attainable(spec, pair) == pair)
        prices = sorted((self.params(spec, pair), pair) for pair in pairs)
        return [pair for params, pair in prices if params < spec.params]

    def errors(self, spec: LayerSpec, kernel: Tensor, candidates: Sequence[Sizes]) -> list[float]:
        """Return ‖K − K̂‖² / ‖K‖² of the layer pressed at each candidate.

        SVD schemes read the errors off a spectrum, tucker2 gives a close upper bound, and other
        schemes decompose once per candidate.

        Parameters
        ----------
        spec : LayerSpec
            A layer that the scheme takes.
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
        errors = []
        for ranks in candidates:
            pressed = self._record_options(self.decompose(layer, spec, kernel, ranks, ()))
            errors.append(float((self.compose(pressed) - weight).square().sum()) / energy)
        return errors

    @abstractmethod
    def spectra(self, spec: LayerSpec, kernel: Tensor) -> tuple[Spectrum, ...]:
        """Return one spectrum per rank, or none if ranks are not ranks of matrices."""

    @abstractmethod
    def params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the parameters of the pressed layer, its bias included."""

    @abstractmethod
    def macs(self, spec: LayerSpec, ranks: Sizes, sizes: Sizes) -> int:
        """Return the multiply-accumulates of the pressed layer for one example.

        Parameters
        ----------
        spec : LayerSpec
            The dense layer.
        ranks : tuple of int
            The ranks.
        sizes : tuple of int
            Spatial sizes of the input; for a Linear or an Embedding, positions per example.
        """

    def peak_values(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the most values that factors, or a step of composing them, need at once."""
        return self.params(spec, ranks)

    def shared_params(self, spec: LayerSpec, ranks: Sizes) -> int:
        """Return the number of parameters that a layer shares with others of a plan."""
        return 0

    def factor_name(self, number: int) -> str:
        """Return the display name of a factor of a rebuilt weight."""
        return f"core{number}"

    @abstractmethod
    def skeleton(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return an uninitialized pressed layer, on the device and in the dtype of ``like``."""

    def factorize(
        self, spec: LayerSpec, kernel: Tensor, ranks: Sizes, spectra: Sequence[Spectrum]
    ) -> Factorized:
        """Return the factors of a kernel in the form that `fill` takes.

        A scheme overrides this method, or `decompose` itself.

        Parameters
        ----------
        spec : LayerSpec
            The dense layer.
        kernel : Tensor
            Its canonical kernel in the working precision.
        ranks : tuple of int
            Attainable ranks.
        spectra : sequence of Spectrum
            The result of `spectra`, or nothing if no rule needed it.
        """
        raise NotImplementedError

    def fill(self, pressed: Pressed, factors: Sequence[Tensor]) -> None:
        """Copy the factors of `factorize` into a skeleton, at scales that suit training."""
        pressed.put_rank_factors(balance_kernels(factors))

    def decompose(
        self,
        layer: nn.Module,
        spec: LayerSpec,
        kernel: Tensor,
        ranks: Sizes,
        spectra: Sequence[Spectrum],
    ) -> nn.Module:
        """Return the pressed layer at checked ranks.

        Parameters
        ----------
        layer : nn.Module
            The dense layer, which gives dtype, device and bias.
        spec, kernel, ranks, spectra
            As for `factorize`.
        """
        pressed = self.skeleton(spec, ranks, like=layer.get_parameter("weight").detach())
        assert isinstance(pressed, Pressed)
        factorized = self.factorize(spec, kernel, ranks, spectra)
        self.fill(pressed, factorized.factors)
        copy_bias(layer._parameters.get("bias"), pressed)
        pressed.relative_error = factorized.relative_error
        return pressed

    def compose(self, pressed: nn.Module) -> Tensor:
        """Return the dense weight, as torch stores it, of a layer pressed by this scheme.

        Raises
        ------
        InvalidArgumentError
            If the layer was not pressed by this scheme.
        """
        form = pressed_form(pressed)
        if form is None or form.scheme != self.name:
            raise InvalidArgumentError(
                f"this {type(pressed).__name__} is not pressed by {self.name}"
            )
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
        """Raise an `InvalidArgumentError` if ranks are out of range for a layer."""
        check_ranks(ranks, self.largest_ranks(spec))

    def cost(self, layer: nn.Module | LayerSpec, ranks: Ranks, sizes: Sizes = ()) -> Cost:
        """Return the exact cost of a layer at some ranks, without decomposing it.

        Parameters
        ----------
        layer : nn.Module or LayerSpec
            The dense layer; its values matter only for rules that need spectra.
        ranks
            As for `press_layer`.
        sizes : tuple of int
            As for `macs`.

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
                f"a {spec.kind} needs the {spec.order} spatial sizes of its input, not {sizes}"
            )
        chosen = self.choose_ranks(layer, ranks)
        return Cost(self.params(spec, chosen), self.macs(spec, chosen, sizes))

    def choose_ranks(self, layer: nn.Module | LayerSpec, ranks: Ranks) -> Sizes:
        """Return the ranks that a rule chooses for a layer.

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
            kernel = _finite_kernel(layer, spec)
        with nullcontext() if kernel is None else one_thread(kernel):
            return self._choose(spec, rule, kernel)[0]

    def press(self, layer: nn.Module, ranks: Ranks, spec: LayerSpec | None = None) -> nn.Module:
        """Press a layer; ``spec`` is that of `describe` by default. See `press_layer`."""
        spec = spec or self.describe(layer)
        self.check(spec)
        kernel = _finite_kernel(layer, spec)
        with one_thread(kernel):
            chosen, spectra = self._choose(spec, parse_rank_rule(ranks), kernel)
            pressed = self._record_options(self.decompose(layer, spec, kernel, chosen, spectra))
            measure_cast_error(pressed, kernel_to_weight(kernel, spec), self.compose)
        copy_requires_grad(layer, pressed)
        return pressed.train(layer.training)

    def build(self, spec: LayerSpec, ranks: Sizes, *, like: Tensor) -> nn.Module:
        """Return the `skeleton` of a pressed layer, with the scheme's options recorded in it."""
        return self._record_options(self.skeleton(spec, ranks, like=like))

    def draw(
        self, spec: LayerSpec, ranks: Sizes, weight: Tensor, init: str, generator: torch.Generator
    ) -> Factors:
        """Draw all factors of a layer from one normal distribution.

        They are scaled so that the weight has exactly the initializer's standard deviation.

        Parameters
        ----------
        spec : LayerSpec
            The dense layer.
        ranks : tuple of int
            The ranks.
        weight : Tensor
            Gives shape, dtype and device.
        init : {"glorot", "kaiming"}
            As for `initial_std`.
        generator : torch.Generator
            Generator of the draw, on the CPU.

        Returns
        -------
        tuple of Tensor
            The factors, then the buffers.
        """
        # In half precision the product of unit draws could overflow.
        pressed = self.build(spec, ranks, like=torch.empty(0, dtype=torch.float64))
        std = initial_std(weight, init)
        draw_factors(pressed, lambda: self.compose(pressed), std, generator)
        buffers = (buffer.to(weight.device) for buffer in pressed.buffers())
        return (*(factor.detach().to(weight) for factor in layer_factors(pressed)), *buffers)

    def decompose_together(
        self, layers: Sequence["PlannedLayer"], weights: Sequence[Tensor]
    ) -> list[Factors]:
        """Return the factors of layers that share their first factor, for `shared` schemes."""
        raise NotImplementedError

    def draw_together(
        self,
        layers: Sequence["PlannedLayer"],
        weights: Sequence[Tensor],
        init: str,
        generators: Sequence[torch.Generator],
    ) -> list[Factors]:
        """Draw the factors of layers that share their first factor; see `draw`."""
        raise NotImplementedError

    def _record_options(self, pressed: nn.Module) -> nn.Module:
        form = pressed_form(pressed)
        if form is not None and self.options:
            form.options = self.options
        return pressed

    def _choose(
        self, spec: LayerSpec, rule: RankRule, kernel: Tensor | None
    ) -> tuple[Sizes, tuple[Spectrum, ...]]:
        """Return the ranks of a rule, and the spectra if the rule needed them."""
        spectra: tuple[Spectrum, ...] = ()
        if rule.needs_spectra and kernel is not None:
            spectra = self.spectra(spec, kernel)
        ranks = rule.ranks(spectra, self.largest_ranks(spec))
        self.check_ranks(spec, ranks)
        return self.attainable(spec, ranks), spectra


def _finite_kernel(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """Return the canonical kernel of a layer in the working precision; check the layer's values."""
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.is_meta:
            raise InvalidArgumentError(
                f"the layer's {name} is on the meta device and has no values"
            )
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidArgumentError(f"the layer's {name} has NaN or infinite values")
    return to_working_precision(layer_kernel(layer, spec))
