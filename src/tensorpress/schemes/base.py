"""What a scheme answers: whether it applies, its ranks and exact cost, and the pressed layer."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from tensorpress.decompose.precision import to_working_precision
from tensorpress.decompose.spectrum import Spectrum
from tensorpress.errors import InvalidArgumentError
from tensorpress.ranks import RankRule, check_ranks, rank_rule, round_ranks
from tensorpress.schemes import stages as chains
from tensorpress.schemes.chain_builder import PressedLayer, balance_kernels, dense_layer, fill_chain
from tensorpress.schemes.layer_spec import (
    LayerSpec,
    Sizes,
    describe_layer,
    kernel_to_weight,
    layer_kernel,
)
from tensorpress.schemes.pressed_layer import Pressed
from tensorpress.schemes.rank_grid import COARSE, thin_grid
from tensorpress.schemes.stages import Stage

Ranks = int | float | str | Sequence[int] | RankRule
"""What a user gives for ranks; see `tensorpress.ranks.rank_rule`."""


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
    """

    name: str
    summary: str
    form: ClassVar[Literal["layer", "weight"]] = "layer"
    parts: ClassVar[tuple[float, ...]] = COARSE

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
            pressed = self.decompose(layer, spec, kernel, ranks, ())
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
        if not isinstance(pressed, Pressed) or pressed.scheme != self.name:
            raise InvalidArgumentError(f"this {type(pressed).__name__} is not of {self.name}")
        return pressed.dense_weight()

    def check(self, spec: LayerSpec) -> None:
        """Raise an `InvalidArgumentError` with the reason if the scheme cannot take a layer."""
        reason = self.refusal(spec)
        if reason is not None:
            raise InvalidArgumentError(f"{self.name} cannot take this {spec.kind}: {reason}")

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
        spec = layer if isinstance(layer, LayerSpec) else describe_layer(layer)
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
        spec = layer if isinstance(layer, LayerSpec) else describe_layer(layer)
        self.check(spec)
        rule, kernel = rank_rule(ranks), None
        if rule.needs_spectra:
            if isinstance(layer, LayerSpec):
                raise InvalidArgumentError(f"{ranks!r} needs the layer itself, not only its spec")
            _check_values(layer)
            kernel = to_working_precision(layer_kernel(layer, spec))
        return self._choose(spec, rule, kernel)[0]

    def press(self, layer: nn.Module, ranks: Ranks) -> nn.Module:
        """Return a layer pressed; see `press_layer`."""
        spec = describe_layer(layer)
        self.check(spec)
        _check_values(layer)
        kernel = to_working_precision(layer_kernel(layer, spec))
        chosen, spectra = self._choose(spec, rank_rule(ranks), kernel)
        pressed = self.decompose(layer, spec, kernel, chosen, spectra)
        keep_gradients(pressed, layer)
        return pressed.train(layer.training)

    def _choose(
        self, spec: LayerSpec, rule: RankRule, kernel: Tensor | None
    ) -> tuple[Sizes, tuple[Spectrum, ...]]:
        spectra: tuple[Spectrum, ...] = ()
        if rule.needs_spectra and kernel is not None:
            spectra = self.spectra(spec, kernel)
        largest = self.largest_ranks(spec)
        chosen = rule.ranks(spectra, largest)
        check_ranks(chosen, largest)
        return self.attainable(spec, chosen), spectra


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


def _check_values(layer: nn.Module) -> None:
    for name, parameter in layer.named_parameters(recurse=False):
        if parameter.is_meta:
            raise InvalidArgumentError(f"the layer's {name} is on the meta device: no values")
        if not bool(torch.isfinite(parameter).all()):
            raise InvalidArgumentError(f"the layer's {name} has NaN or infinite values")


def layer_bias(pressed: nn.Module) -> nn.Parameter | None:
    """Return the bias of a layer pressed in either form, where there is one."""
    return pressed.held_bias() if isinstance(pressed, Pressed) else pressed._parameters.get("bias")


def keep_gradients(pressed: nn.Module, layer: nn.Module) -> None:
    """Require gradients of the factors as of the weight, and of the bias as of the bias."""
    pressed.requires_grad_(layer.get_parameter("weight").requires_grad)
    held, bias = layer_bias(pressed), layer._parameters.get("bias")
    if held is not None and bias is not None:
        held.requires_grad_(bias.requires_grad)
