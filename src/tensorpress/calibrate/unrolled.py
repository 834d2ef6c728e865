"""Computes recurrent and attention layers by Linear layers, so that inputs are observed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from tensorpress.schemes.parametrization import factorized_weight, stored_factors
from tensorpress.utils.module_tree import copy_model, weight_name

State = tuple[Tensor, ...]
"""Hidden states of a batch: (h,), or (h, c) for an LSTM."""

KINDS = (
    *(nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell),
    nn.MultiheadAttention,
)


def unroll(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """Return a model that computes its recurrent and attention layers by Linear layers.

    Each weight of an LSTM, GRU, RNN, cell or `nn.MultiheadAttention` becomes the weight of a Linear
    with the name of the parameter, so that hooks on layers see the inputs and gradients of these
    weights too. The copy shares the model's parameters and buffers. Layers with parametrized
    weights or an overridden forward pass are not changed.

    Parameters
    ----------
    model : nn.Module
        The model, left unchanged.

    Returns
    -------
    nn.Module
        The model itself if it has no such layer, else a copy that shares its tensors.
    list of str
        The names of the Linear layers that replace weights.

    Examples
    --------
    >>> model, x = nn.Sequential(nn.LSTM(3, 4)), torch.randn(5, 2, 3)
    >>> unrolled, names = unroll(model)
    >>> names
    ['0.weight_ih_l0', '0.weight_hh_l0']
    >>> torch.allclose(unrolled(x)[0], model(x)[0], atol=1e-6)
    True
    """
    if not any(_kind(module) is not None for module in model.modules()):
        return model, []
    result = copy_model(model, [*model.parameters(), *model.buffers()])
    return result, _unroll_inplace(result)


@contextmanager
def unrolled_inplace(model: nn.Module) -> Iterator[list[str]]:
    """Unroll the layers of a model during a ``with`` block; yield the names that `unroll` returns.

    Weights that are factorized inside the block stay factorized afterwards.
    """
    names = _unroll_inplace(model)
    try:
        yield names
    finally:
        for module in model.modules():
            if isinstance(module, _Unrolled | _UnrolledCell | _UnrolledAttention):
                _join(module)


def _unroll_inplace(model: nn.Module) -> list[str]:
    recurrent = [(name, m) for name, m in model.named_modules() if _kind(m) is not None]
    return [weight_name(name, key) for name, layer in recurrent for key in _split(layer)]


def _kind(module: nn.Module) -> type[nn.Module] | None:
    """Return the class in `KINDS` of a module with the usual forward pass and weights, or None."""
    kind = next((kind for kind in KINDS if isinstance(module, kind)), None)
    if kind is None or type(module).forward is not kind.forward or "forward" in vars(module):
        return None
    return kind if "parametrizations" not in module._modules and _weight_keys(module) else None


def _weight_keys(layer: nn.Module) -> list[str]:
    """Return the names of the parameters that multiply inputs, such as weight_ih_l0."""
    return [
        key
        for key, parameter in layer._parameters.items()
        if parameter is not None and (key.startswith("weight_") or key.endswith("_proj_weight"))
    ]


def _split(layer: nn.Module) -> list[str]:
    """Replace the weights of a layer by Linear layers; return their names."""
    kind = _kind(layer)
    assert kind is not None
    names = _weight_keys(layer)
    vars(layer)["_parameter_names"], vars(layer)["_weight_names"] = [*layer._parameters], names
    base: type[nn.Module] = _Unrolled
    if issubclass(kind, nn.RNNCellBase | nn.MultiheadAttention):
        base = _UnrolledCell if issubclass(kind, nn.RNNCellBase) else _UnrolledAttention
    layer.__class__ = type(kind.__name__, (base, type(layer)), {})
    if isinstance(layer, nn.RNNBase):
        layer.__dict__["_flat_weights"] = []  # flatten_parameters ignores an empty list
    for key in names:
        weight = layer._parameters.pop(key)
        bias = layer._parameters.pop(_bias(key), None)
        assert weight is not None
        outputs, inputs = weight.shape
        linear = _LinearWeight(inputs, outputs, bias=bias is not None, device="meta")
        linear.weight = weight
        linear.register_parameter("bias", bias)
        layer._modules[key] = linear
    if base is _UnrolledAttention:  # torch reads it to choose its fast path
        layer._parameters.setdefault("in_proj_bias", None)
    return names


def _join(layer: nn.Module) -> None:
    """Turn an unrolled layer back into torch's layer, with its present weights and factors."""
    linears = {key: layer._modules.pop(key) for key in vars(layer).pop("_weight_names")}
    layer.__class__ = type(layer).__bases__[1]
    factors = {}
    values: dict[str, nn.Parameter | None] = {}
    for key, linear in linears.items():
        assert linear is not None
        form = factorized_weight(linear)
        if form is not None:
            factors[key] = form, tuple(stored_factors(linear).parameters())
        weight = linear.weight  # computed from the factors if there are any
        assert isinstance(weight, Tensor)
        values[key] = weight if isinstance(weight, nn.Parameter) else nn.Parameter(weight)
        if _bias(key) in vars(layer)["_parameter_names"]:
            values[_bias(key)] = linear._parameters["bias"]
    for name in vars(layer).pop("_parameter_names"):
        layer._parameters[name] = values.get(name, layer._parameters.pop(name, None))
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()
    for key, (form, stored) in factors.items():
        form.attach(layer, stored, key)
        layer.get_submodule("parametrizations").train(layer.training)


def _bias(weight: str) -> str:
    return weight.replace("weight", "bias")


class _LinearWeight(nn.Linear):
    """A Linear that also has the attributes of its weight, such as the device."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("weight"), name)


class _UnrolledCell(nn.RNNCellBase):
    """A recurrent cell of torch whose weights are Linear layers."""

    def forward(self, input: Tensor, hx: Any = None) -> Any:  # noqa: A002
        """Return the next state of a batch, or of one example."""
        x = input.reshape(-1, input.shape[-1])
        long = isinstance(self, nn.LSTMCell)
        if hx is None:
            state: State = (x.new_zeros(len(x), self.hidden_size),) * (2 if long else 1)
        else:
            state = tuple(s.reshape(-1, s.shape[-1]) for s in (hx if long else (hx,)))
        update = _update(self, "")
        gates = self.get_submodule("weight_ih")(x)
        state = update(gates, state)
        shape = (*input.shape[:-1], self.hidden_size)
        result = tuple(s.reshape(shape) for s in state)
        return result if long else result[0]


class _Unrolled(nn.RNNBase):
    """A recurrent layer of torch whose weights are Linear layers."""

    def forward(  # input is torch's name
        self,
        input: Tensor | PackedSequence,  # noqa: A002
        hx: Any = None,
    ) -> tuple[Any, Any]:
        """Return the outputs and the last states, in the shapes of torch."""
        long = isinstance(self, nn.LSTM)
        state: State | None = None if hx is None else tuple(hx if long else (hx,))
        if isinstance(input, PackedSequence):
            order, back = input.sorted_indices, input.unsorted_indices
            if state is not None and order is not None:
                state = tuple(s[:, order] for s in state)
            data, last = self._run(input.data, input.batch_sizes.tolist(), state)
            if back is not None:
                last = tuple(s[:, back] for s in last)
            output: Any = PackedSequence(data, input.batch_sizes, order, back)
            return output, last if long else last[0]
        batched = input.ndim == 3
        x = input if batched else input[:, None]
        if batched and self.batch_first:
            x = x.transpose(0, 1)
        if state is not None and not batched:
            state = tuple(s[:, None] for s in state)
        steps, batch = x.shape[:2]
        data, last = self._run(x.flatten(0, 1), [batch] * steps, state)
        output = data.reshape(steps, batch, -1)
        if not batched:
            output, last = output[:, 0], tuple(s[:, 0] for s in last)
        elif self.batch_first:
            output = output.transpose(0, 1)
        return output, last if long else last[0]

    def _run(self, x: Tensor, sizes: list[int], initial: State | None) -> tuple[Tensor, State]:
        """Run all layers over packed steps of non-increasing batch sizes.

        Return the packed outputs, and the last states, each (layers, batch, n).
        """
        directions = ["", "_reverse"][: 1 + self.bidirectional]
        last: list[State] = []
        for level in range(self.num_layers):
            outputs = []
            for suffix in directions:
                if initial is None:
                    widths = (self.proj_size or self.hidden_size, self.hidden_size)
                    count = 2 if isinstance(self, nn.LSTM) else 1
                    state: State = tuple(x.new_zeros(sizes[0], n) for n in widths[:count])
                else:
                    state = tuple(s[len(last)] for s in initial)
                output, state = self._run_direction(x, sizes, state, f"_l{level}{suffix}")
                outputs.append(output)
                last.append(state)
            x = torch.cat(outputs, dim=-1)
        return x, tuple(torch.stack(states) for states in zip(*last, strict=True))

    def _run_direction(
        self, x: Tensor, sizes: list[int], state: State, suffix: str
    ) -> tuple[Tensor, State]:
        update = _update(self, suffix)
        gates = self.get_submodule(f"weight_ih{suffix}")(x).split(sizes)
        backward = suffix.endswith("_reverse")
        places = range(len(sizes))
        outputs: list[Tensor] = [x] * len(sizes)
        for place in reversed(places) if backward else places:
            running = tuple(s[: sizes[place]] for s in state)  # the longest sequences come first
            changed = update(gates[place], running)
            outputs[place] = changed[0]
            ended = (s[sizes[place] :] for s in state)
            state = tuple(torch.cat(pair) for pair in zip(changed, ended, strict=True))
        return torch.cat(outputs), state


class _UnrolledAttention(nn.MultiheadAttention):
    """An attention of torch whose weights are Linear layers."""

    def forward(  # all arguments of torch
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return the outputs and weights of attention, in the shapes of torch."""
        q, k, v = self._project(query, key, value)
        swapped = self.batch_first and query.ndim == 3
        if swapped:
            q, k, v = (x.transpose(0, 1) for x in (q, k, v))
        # the projections are done, so torch gets identity matrices as weights
        eye = torch.eye(self.embed_dim, dtype=query.dtype, device=query.device)
        output, weights = functional.multi_head_attention_forward(
            *(q, k, v, self.embed_dim, self.num_heads, None, None),
            *(self.bias_k, self.bias_v, self.add_zero_attn, self.dropout, eye, None),
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=True,
            q_proj_weight=eye,
            k_proj_weight=eye,
            v_proj_weight=eye,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        return self.out_proj(output.transpose(0, 1) if swapped else output), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
        """Return queries, keys and values after their weights and biases."""
        inputs = (query, key, value)
        if self._qkv_same_embed_dim:
            packed = self.get_submodule("in_proj_weight")
            distinct = {id(x): x for x in inputs}  # only one in self-attention
            outputs = {key: packed(x) for key, x in distinct.items()}
            return [outputs[id(x)].chunk(3, dim=-1)[place] for place, x in enumerate(inputs)]
        linears = [self.get_submodule(f"{part}_proj_weight") for part in "qkv"]
        results: list[Tensor] = [linear(x) for linear, x in zip(linears, inputs, strict=True)]
        bias = self.in_proj_bias
        if bias is None:
            return results
        return [x + part for x, part in zip(results, bias.chunk(3), strict=True)]


def _update(layer: nn.Module, suffix: str) -> Callable[[Tensor, State], State]:
    """Return the function from the input's part of the gates and a state to the next state."""
    hidden = layer.get_submodule(f"weight_hh{suffix}")
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        projection = layer._modules.get(f"weight_hr{suffix}", nn.Identity())
        assert projection is not None
        return lambda gates, state: _lstm_step(gates + hidden(state[0]), state[1], projection)
    if isinstance(layer, nn.GRU | nn.GRUCell):
        return lambda gates, state: (_gru_step(gates, hidden(state[0]), state[0]),)
    activate = torch.relu if getattr(layer, "nonlinearity", "tanh") == "relu" else torch.tanh
    return lambda gates, state: (activate(gates + hidden(state[0])),)


def _lstm_step(gates: Tensor, cell: Tensor, projection: nn.Module) -> State:
    # c' = σ(f) c + σ(i) tanh(g),  h' = P σ(o) tanh(c')
    i, f, g, o = gates.chunk(4, dim=-1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return projection(o.sigmoid() * cell.tanh()), cell


def _gru_step(gates: Tensor, recurrent: Tensor, state: Tensor) -> Tensor:
    # r, z = σ(a + b),  n = tanh(a + r b),  h' = (1 − z) n + z h
    r, z, n = gates.chunk(3, dim=-1)
    r_hidden, z_hidden, n_hidden = recurrent.chunk(3, dim=-1)
    reset, update = (r + r_hidden).sigmoid(), (z + z_hidden).sigmoid()
    return (1 - update) * (n + reset * n_hidden).tanh() + update * state
