"""What a run is: digests of its model, data and settings, to be compared with those of an earlier one."""

from __future__ import annotations

import functools
import hashlib
import inspect
import platform
import types
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from sojourn._contract import Site, trace_model
from sojourn.inference import _labels as labels
from sojourn.inference._check_model import latent_sites
from sojourn.inference._predictive import site_log_prob
from sojourn.inference._traced import ADDRESS, array_digest, program_digest

__all__ = ["described", "fingerprint", "program"]

_LIBRARIES = ("sojourn", "numpyro", "jax", "jaxlib")


def fingerprint(
    model: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    trace: Mapping[str, Site],
    settings: Mapping[str, Any],
) -> dict[str, str]:
    """Text by subject: ``model``, ``data NAME`` for arrays, arguments and settings by name, ``version LIBRARY``.

    Example:
        >>> import numpy as np, numpyro, numpyro.distributions as dist
        >>> def coin(tosses):
        ...     p = numpyro.sample("p", dist.Beta(1.0, 1.0))
        ...     numpyro.sample("tosses", dist.Bernoulli(p), obs=tosses)
        >>> tosses = np.array([1, 0, 1])
        >>> trace = trace_model(coin, (tosses,), {}, key=jax.random.key(0))
        >>> list(fingerprint(coin, (tosses,), {}, trace, {"seed": 0}))[:3]
        ['model', 'data tosses', 'seed']
    """
    found = {"model": program(model, args, kwargs, trace)}
    arrays = labels.named_arrays(model, args, kwargs)
    found |= {f"data {name}": array_digest(array) for name, array in arrays.items()}
    try:
        bound = inspect.signature(model).bind_partial(*args, **kwargs).arguments
    except (TypeError, ValueError):
        bound = dict(kwargs)
    found |= {name: described(value) for name, value in bound.items() if name not in arrays}
    found |= {name: described(value) for name, value in settings.items()}
    found |= {f"version {name}": version(name) for name in _LIBRARIES}
    return found | {"version python": platform.python_version()}


def program(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], trace: Mapping[str, Site]
) -> str:
    """Digest of what the model computes: its log density, traced. Names of variables and comments do not count."""
    values = {name: site["value"] for name, site in latent_sites(trace).items()}

    def terms(values: Mapping[str, Any]) -> dict[str, Any]:
        found = trace_model(model, args, kwargs, key=jax.random.key(0), values=values)
        sites = {n: site_log_prob(s) for n, s in found.items() if s["type"] == "sample"}
        return sites | {n: s["value"] for n, s in found.items() if s["type"] == "deterministic"}

    digest = hashlib.blake2b(digest_size=12)
    for name, site in latent_sites(trace).items():
        digest.update(f"{name} {type(site['fn'].support).__name__}\n".encode())
        digest.update(described((site.get("infer") or {}).get("init")).encode())
    try:
        digest.update(program_digest(terms, values).encode())
    except Exception:  # a model that cannot be traced is run by operations, and known by its text
        digest.update(described(model).encode())
    return digest.hexdigest()


def described(value: Any) -> str:
    """A setting in words, the same in every process; a digest where these would be many."""
    text = _described(value, 4)
    return text if len(text) <= 80 else hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _described(value: Any, depth: int) -> str:
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        return repr(value)
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return array_digest(value)
    if depth == 0:
        return type(value).__name__

    def inner(v: Any) -> str:
        return _described(v, depth - 1)

    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k}: {inner(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        parts = [inner(v) for v in value]
        return f"({', '.join(sorted(parts) if isinstance(value, set | frozenset) else parts)})"
    if isinstance(value, functools.partial):
        settings = ", ".join(
            [*map(inner, value.args), *(f"{k}={inner(v)}" for k, v in value.keywords.items())]
        )
        return f"{inner(value.func)}({settings})"
    if isinstance(value, types.FunctionType):
        return f"{value.__qualname__}:{_code(value.__code__)}{inner(value.__defaults__)}"
    if isinstance(value, type):
        return value.__qualname__
    if hasattr(value, "data_vars"):  # xarray
        return inner({str(n): v.to_numpy() for n, v in value.data_vars.items()})
    state = getattr(value, "__dict__", None)
    if isinstance(state, dict) and not isinstance(value, types.ModuleType):
        public = {k: v for k, v in state.items() if not k.startswith("__")}
        return f"{type(value).__qualname__}{inner(public)}"
    return ADDRESS.sub("", repr(value))


def _code(code: types.CodeType) -> str:
    digest = hashlib.blake2b(code.co_code, digest_size=8)
    for constant in code.co_consts:
        digest.update((_code(constant) if isinstance(constant, types.CodeType) else repr(constant)).encode())
    digest.update(repr((code.co_names, code.co_varnames)).encode())
    return digest.hexdigest()
