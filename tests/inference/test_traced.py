"""Digests of programs: the same for the same computation, whatever the order it is written in."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from sojourn.inference._traced import program_digest

VALUES = {"a": jnp.ones(3), "b": jnp.ones(3)}


def scanned(v, gain=1.0, swapped=False, reverse=False):
    def step(carry, x):
        p, q = carry[::-1] if swapped else carry
        p, q = p + gain * q * x, p * v["b"].sum()
        return (q, p) if swapped else (p, q), p

    start = jnp.zeros(()), jnp.zeros(())  # they begin alike
    (p, q), rows = lax.scan(step, start, v["a"], reverse=reverse)
    return {"rows": rows, "end": q if swapped else p}


def lagged(v, gain=1.0):
    """What enters the memory comes out six steps later."""

    def step(memory, x):
        return (*memory[1:], gain * x), memory[0]

    return {"rows": lax.scan(step, (jnp.zeros(()),) * 6, v["a"])[1]}


def waited(v, least=4.0, step=1.0):
    return {"y": lax.while_loop(lambda x: x.sum() < least, lambda x: x + step * v["b"], v["a"])}


def branched(v, shift=1.0):
    return {"y": lax.cond(v["a"].sum() > 0, lambda x: x + shift, lambda x: x * v["b"], v["a"])}


def rooted(v, power=2.0):
    """A primitive with programs inside, of which nothing else is known."""
    found = lax.custom_root(
        lambda x: x**power - v["a"].sum(),
        1.0,
        lambda f, x: lax.fori_loop(0, 9, lambda i, z: z - f(z), x),
        _solve,
    )
    return {"y": found}


def _solve(f, y):
    return y / f(1.0)


@pytest.mark.parametrize(
    ("fn", "changes"),
    [
        (scanned, [{"gain": 2.0}, {"reverse": True}]),
        (lagged, [{"gain": 2.0}]),
        (waited, [{"least": 5.0}, {"step": 2.0}]),
        (branched, [{"shift": 2.0}]),
        (rooted, [{"power": 3.0}]),
        (lambda v, c=0.5: {"y": jax.jit(lambda x: x * c)(v["a"])}, [{"c": 0.7}]),
        (lambda v, c=0.5: {"y": jax.nn.softplus(c * v["a"])}, [{"c": 0.7}]),
        (lambda v, name="a": {"y": v[name]}, [{"name": "b"}]),
        (lambda v, name="y": {name: v["a"]}, [{"name": "z"}]),
        (lambda v, c=1: {"y": v["a"] + jnp.arange(3) * c}, [{"c": 2}]),
    ],
)
def test_each_change_is_seen(fn, changes):
    known = program_digest(fn, VALUES)
    assert program_digest(fn, VALUES) == known
    for change in changes:
        assert program_digest(lambda v, change=change: fn(v, **change), VALUES) != known


def test_shapes_count():
    assert program_digest(branched, VALUES) != program_digest(branched, {n: jnp.ones(4) for n in "ab"})


def test_the_order_of_what_goes_through_a_loop_does_not_count():
    assert program_digest(scanned, VALUES) == program_digest(lambda v: scanned(v, swapped=True), VALUES)


def test_calls_do_not_count():
    assert program_digest(jax.jit(scanned), VALUES) == program_digest(scanned, VALUES)


def test_processes_agree():
    """NumPyro's distributions are flattened in the order of a set of strings."""
    code = """
import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
from numpyro.contrib.control_flow import scan
from sojourn._contract import trace_model
from sojourn.inference._fingerprint import program

def walk(y):
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    def step(x, y):
        x = numpyro.sample("x", dist.Normal(x, scale))
        numpyro.sample("y", dist.StudentT(5.0, x, 2.0 * scale), obs=y)
        return x, None
    scan(step, 0.0, y)

y = jnp.arange(3.0)
trace = trace_model(walk, (y,), {}, key=jax.random.key(0))
print(program(walk, (y,), {}, trace), str(jax.make_jaxpr(dist.StudentT.log_prob)(dist.StudentT(5.0, 0.0, y + 1.0), y)))
"""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in range(3)
    ]
    said = [process.communicate()[0].split(" ", 1) for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert len({digest for digest, _ in said}) == 1
    assert len({written for _, written in said}) > 1  # else nothing was tested
