"""A path system linearised around a path, and the most probable path."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from sojourn.inference._initial import compiled_once
from sojourn.inference._path_system import PathSystem
from sojourn.inference._scan import ScanCall
from sojourn.ops import information_filter

__all__ = ["Linear", "filtered", "linearise", "most_probable_path", "quadratic"]


class Linear(NamedTuple):
    """A step around a reference: ``z' = after + move dz + push de``, and its working responses likewise."""

    after: Array
    move: Array
    push: Array
    response_move: Array
    response_push: Array
    score: Array
    information: Array


def linearise(system: PathSystem, call: ScanCall, states: Array, noises: Array) -> Linear:
    d, m = system.num_states, system.num_noise

    def at(x, t, state, noise):
        def f(delta):
            after, trace = system.step(call, state + delta[:d], noise + delta[d:], x, t)
            response = system.working(trace)
            return (after, response.parameter), (after, response.score, response.information)

        (jac, response), (after, score, information) = jax.jacfwd(f, has_aux=True)(jnp.zeros(d + m))
        return Linear(
            after, jac[..., :d], jac[..., d:], response[..., :d], response[..., d:], score, information
        )

    return jax.vmap(at)(call.xs, jnp.arange(system.length), states, noises)


def quadratic(
    linear: Linear, kept: np.ndarray, weight: Array, shift: Array, free: Any
) -> information_filter.Quadratic:
    """What is seen in each step: working responses, weighed and shifted, and free pseudo-observations."""
    information = linear.information[..., kept] * jnp.exp(weight)
    score = linear.score[..., kept] + shift * jnp.sqrt(linear.information[..., kept] + 1e-12)
    a, b = linear.response_move[..., kept, :], linear.response_push[..., kept, :]
    if free is not None:
        coordinates, precision, target = free
        a = jnp.concatenate([a, linear.move[..., coordinates, :]], -2)
        b = jnp.concatenate([b, linear.push[..., coordinates, :]], -2)
        information = jnp.concatenate([information, precision], -1)
        score = jnp.concatenate([score, target * precision], -1)
    weighted_a, weighted_b = information[..., None] * a, information[..., None] * b
    at, bt = jnp.swapaxes(a, -1, -2), jnp.swapaxes(b, -1, -2)
    return information_filter.Quadratic(
        at @ weighted_a,
        bt @ weighted_a,
        bt @ weighted_b,
        (at @ score[..., None])[..., 0],
        (bt @ score[..., None])[..., 0],
    )


def filtered(system, start, linear, seen, call, path):
    """Controls of all steps, relative to the reference, and mean and root of the precision of the initial noise."""
    states, noises, first = path
    offset = linear.after - jnp.concatenate([states[1:], linear.after[-1:]])
    control, future = information_filter.backward(linear.move, linear.push, offset, seen, -noises)
    begin = system.pack_state(call.init)
    push = jnp.zeros((*begin.shape, 0))
    if system.num_initial:

        def of_noise(delta):
            return system.pack_state(start(first + delta)[0].init)

        push = jax.jacfwd(of_noise)(jnp.zeros(system.num_initial))
    return control, information_filter.initial_control(push, begin - states[0], -first, future)


def most_probable_path(system, args, kwargs, vector, params, seed):
    """The most probable path; the spread of each state; states in which the step is not linear; whether the
    observations are anything but linear and normal; the working responses that hang on the path."""
    everything = slice(None)

    @jax.jit
    def expand(vector, params, path):
        states, noises, first = path
        call, _ = system.start(args, kwargs, vector, first, params)
        linear = linearise(system, call, states, noises)
        nothing = jnp.zeros(linear.score.shape)
        seen = quadratic(linear, everything, nothing, nothing, None)
        start = partial(system.start, args, kwargs, vector, params=params)
        control, initial = filtered(system, start, linear, seen, call, path)
        return linear, control.mean, control.gain, initial[0]

    @jax.jit
    def best_of(vector, params, path, value, firsts, means, gain):
        """Run the model under several controls; each system keeps the best path so far."""
        states, noises, first = path

        def one(first, mean):
            call, _ = system.start(args, kwargs, vector, first, params)

            def step(carry, inputs):
                state, total = carry
                x, t, mean, gain, reference = inputs
                noise = mean + (gain @ (state - reference)[..., None])[..., 0]
                after, trace = system.step(call, state, noise, x, t)
                return (after, total + system.log_density(noise, trace)), (state, noise)

            begin = system.pack_state(call.init), -0.5 * (first**2).sum(-1)
            steps = call.xs, jnp.arange(system.length), mean, gain, states
            (_, total), (visited, noises) = jax.lax.scan(step, begin, steps)
            return visited, noises, jnp.where(jnp.isfinite(total), total, -jnp.inf)

        visited, drawn, values = jax.vmap(one)(firsts, means)
        each, best = jnp.arange(system.num_systems), jnp.argmax(values, 0)
        better = values[best, each] > value
        path = (
            jnp.where(better[:, None], visited[best, :, each].swapaxes(0, 1), states),
            jnp.where(better[:, None], drawn[best, :, each].swapaxes(0, 1), noises),
            jnp.where(better[:, None], firsts[best, each], first),
        )
        spread = jnp.std(visited, (0, 1, 2), where=jnp.isfinite(visited))
        return path, jnp.where(better, values[best, each], value), spread

    length, systems, noise, count = system.length, system.num_systems, system.num_noise, system.num_states
    steps = np.array([1.0, 0.5, 0.25, 0.1, 0.03, 0.0])  # of a Gauss-Newton move
    generator = np.random.default_rng(seed)
    means = generator.standard_normal((len(steps), length, systems, noise))
    firsts = generator.standard_normal((len(steps), systems, system.num_initial))
    means[0], firsts[0] = 0.0, 0.0
    gain = np.zeros((length, systems, noise, count))
    path: Any = (np.zeros((length, systems, count)), means[0], firsts[0])
    nowhere = np.full(systems, -np.inf)
    with compiled_once():
        path, value, spread = best_of(vector, params, path, nowhere, firsts, means, gain)
        spread = np.where(np.asarray(spread) > 1e-8, spread, 1.0)
        if not np.isfinite(value).all():
            raise ValueError(
                "The model has no finite density along any path that its prior was asked for: check its priors, or "
                "hint a start with infer={'init': value}."
            )
        for _ in range(30):
            linear, mean, gain, move = expand(vector, params, path)
            before, trial = np.asarray(value), steps[:, None, None]
            firsts = np.asarray(path[2]) + trial * np.asarray(move)
            means = np.asarray(path[1]) + trial[..., None] * np.asarray(mean)
            path, value, _ = best_of(vector, params, path, value, firsts, means, gain)
            if not (np.asarray(value) - before > 1e-4 * (1.0 + np.abs(before))).any():
                break
        slopes = np.abs(linear.response_move).max((0, 1, 3), initial=0.0)
        slopes = slopes + np.abs(linear.response_push).max((0, 1, 3), initial=0.0)
        kept = np.flatnonzero(slopes > 0)
        curved, rough = _curvature(partial(expand, vector, params), path, spread, kept)
    return path, spread, curved, rough, kept


def _curvature(expand, path, spread, kept):
    """States whose change changes the linearisation; and whether anything changes it."""

    def parts(path):
        linear = jax.tree.map(np.asarray, expand(path)[0])
        responses = linear.response_move, linear.response_push
        return (
            linear.move,
            linear.push,
            *(r[..., kept, :] for r in responses),
            linear.information[..., kept],
        )

    states, noises, first = map(np.asarray, path)
    before = parts(path)
    curved, rough = [], False
    count = states.shape[-1]
    for k in range(count + noises.shape[-1]):
        moved = states.copy(), noises.copy(), first
        moved[0 if k < count else 1][..., k - count if k >= count else k] += 0.5 * (
            spread[k] if k < count else 1.0
        )
        bent = any(
            (np.abs(one - two) > 1e-5 * (1e-30 + np.abs(one).max(initial=0.0))).any()
            for one, two in zip(before, parts(moved), strict=True)
        )
        rough = rough or bent
        if k < count and bent:
            curved.append(k)
    return np.array(curved, int), rough
