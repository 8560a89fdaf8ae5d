"""Networks that read a series and give every step a context."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import Array

__all__ = ["ControlNetwork", "ConvolutionalEncoder", "RecurrentEncoder", "build_encoder"]


class RecurrentEncoder(eqx.Module):
    """Gated recurrent units from both ends: ``(T, inputs)`` to ``(T, outputs)``, for any ``T``."""

    forward: eqx.nn.GRUCell
    backward: eqx.nn.GRUCell
    readout: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, width: int, key: Array):
        one, two, three = jax.random.split(key, 3)
        self.forward = eqx.nn.GRUCell(inputs, width, key=one)
        self.backward = eqx.nn.GRUCell(inputs, width, key=two)
        self.readout = eqx.nn.Linear(2 * width, outputs, key=three)

    def __call__(self, x: Array) -> Array:
        def both(hidden, pair):
            hidden = self.forward(pair[0], hidden[0]), self.backward(pair[1], hidden[1])
            return hidden, hidden

        nothing = jnp.zeros(self.forward.hidden_size, x.dtype)
        _, (ahead, back) = jax.lax.scan(both, (nothing, nothing), (x, x[::-1]))
        return jax.vmap(self.readout)(jnp.concatenate([ahead, back[::-1]], -1))


class ConvolutionalEncoder(eqx.Module):
    """Dilated convolutions along time: ``(T, inputs)`` to ``(T, outputs)``, for any ``T``.

    Layer ``k`` looks ``2 * 2**k`` steps to either side.
    """

    layers: tuple[eqx.nn.Conv1d, ...]
    readout: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, width: int, key: Array, depth: int = 4):
        keys = jax.random.split(key, depth + 1)
        self.layers = tuple(
            eqx.nn.Conv1d(inputs if k == 0 else width, width, 5, padding=2 * 2**k, dilation=2**k, key=keys[k])
            for k in range(depth)
        )
        self.readout = eqx.nn.Linear(width, outputs, key=keys[-1])

    def __call__(self, x: Array) -> Array:
        h = x.T
        for k, layer in enumerate(self.layers):
            new = jax.nn.gelu(layer(h))
            h = new if k == 0 else h + new
        return jax.vmap(self.readout)(h.T)


class ControlNetwork(eqx.Module):
    """From context and state to the law of the noise: one hidden layer; its last layer starts at zero."""

    hidden: tuple[eqx.nn.Linear, ...]
    readout: eqx.nn.Linear

    def __init__(self, inputs: int, outputs: int, width: int, depth: int, key: Array):
        keys = jax.random.split(key, depth + 1)
        sizes = [inputs, *[width] * depth]
        self.hidden = tuple(
            eqx.nn.Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys[:-1], strict=True)
        )
        self.readout = silent(eqx.nn.Linear(sizes[-1], outputs, key=keys[-1]))

    def __call__(self, x: Array) -> Array:
        for layer in self.hidden:
            x = jnp.tanh(layer(x))
        return self.readout(x)


def silent(layer: eqx.nn.Linear) -> eqx.nn.Linear:
    """A layer that gives zeros until it is trained."""
    return jax.tree.map(lambda x: jnp.zeros_like(x) if eqx.is_array(x) else x, layer)


_NAMED: dict[str, Callable[..., Any]] = {"gru": RecurrentEncoder, "conv": ConvolutionalEncoder}


def build_encoder(encoder: Any, inputs: int, outputs: int, width: int, key: Array) -> Any:
    """An encoder by its name, or the one given: a function (or module) ``(T, inputs) -> (T, outputs)``."""
    if isinstance(encoder, str):
        if encoder not in _NAMED:
            raise ValueError(
                f"There is no encoder {encoder!r}: it is 'gru', 'conv', or a function or equinox module that takes "
                "(time, inputs) to (time, context)."
            )
        return _NAMED[encoder](inputs, outputs, width, key)
    if not callable(encoder):
        raise ValueError(
            f"`encoder` must be None, 'gru', 'conv', or a function or equinox module that takes (time, inputs) to "
            f"(time, context), not {encoder!r:.60}."
        )
    return encoder
