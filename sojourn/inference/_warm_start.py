"""Exact inference that starts from an approximate posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.distributions import Distribution, biject_to
from numpyro.infer.autoguide import AutoContinuous, AutoGuide
from numpyro.infer.gibbs import Gibbs
from numpyro.infer.hmc import HMC
from numpyro.infer.mcmc import MCMCKernel

from sojourn._contract import Site
from sojourn.diagnostics._arviz import group
from sojourn.inference._check_model import latent_sites
from sojourn.inference._particle_gibbs import ParticleGibbs

__all__ = ["WarmStart", "read_warm_start", "start_guide", "start_kernel"]

_NUM_DRAWS = 400
_OVERDISPERSION = 1.5  # of the chains' starts, for R-hat to mean something
_UNKNOWN_SD = 0.1  # where all draws are the same; NumPyro's own for a guide that knows nothing yet


class WarmStart(NamedTuple):
    """Independent Gaussians on the unconstrained scale, for some or all continuous latent sites.

    Attributes:
        draws: of the approximation, on the scale of the site, ``(draw, *site)``.
        mean, sd: of these draws on the unconstrained scale.
        shapes: unconstrained shape of every continuous latent site of the model.
        source: type of the object that the approximation came from.
    """

    draws: dict[str, np.ndarray]
    mean: dict[str, Array]
    sd: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    source: str


def read_warm_start(source: Any, trace: Mapping[str, Site]) -> WarmStart:
    """What ``source`` says about the latent sites of a model.

    Args:
        source: a mapping from names of sites to distributions, an object with ``warm_start(trace)`` that makes one, or
            an earlier fit, of which sites that this model has not are left aside.
        trace: of the model.

    Raises:
        TypeError: ``source`` is none of these.
        ValueError: a site that the model has not, or of another shape; values outside its support; no site at all.
    """
    sites = {n: s for n, s in latent_sites(trace).items() if not s["fn"].support.is_discrete}
    posterior = group(source, "posterior")
    if posterior is not None:
        kept = {n: posterior[n].transpose("chain", "draw", ...).values for n in sites if n in posterior}
        draws = {n: _thinned(v.reshape(-1, *v.shape[2:])) for n, v in kept.items()}
    else:
        laws = source.warm_start(trace) if callable(getattr(source, "warm_start", None)) else source
        if not isinstance(laws, Mapping) or not all(isinstance(law, Distribution) for law in laws.values()):
            raise TypeError(
                "`warm_start` must be a mapping from names of sites to NumPyro distributions, an object with a method "
                f"warm_start(trace) that returns one, or an earlier fit, not {_described(source, laws)}."
            )
        unknown = [n for n in laws if n not in sites]
        if unknown:
            raise ValueError(
                f"`warm_start` has a law for {unknown[0]!r}, and the continuous latent sites of the model are "
                f"{list(sites)}."
            )
        keys = jax.random.split(jax.random.key(0), max(len(laws), 1))
        draws = {
            n: np.asarray(law.sample(key, (_NUM_DRAWS,)))
            for key, (n, law) in zip(keys, laws.items(), strict=False)
        }
    if not draws:
        raise ValueError(f"`warm_start` says nothing of the continuous latent sites {list(sites)}.")
    for name, values in draws.items():
        shape = np.shape(sites[name]["value"])
        if values.shape[1:] != shape:
            raise ValueError(
                f"Site '{name}' has shape {shape}, and in `warm_start` its shape is {values.shape[1:]}."
            )
    moments = {n: _moments(n, sites[n], values) for n, values in draws.items()}
    return WarmStart(
        draws,
        {n: mean for n, (mean, _) in moments.items()},
        {n: sd for n, (_, sd) in moments.items()},
        {n: biject_to(s["fn"].support).inverse_shape(np.shape(s["value"])) for n, s in sites.items()},
        type(source).__name__,
    )


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[np.linspace(0, len(values) - 1, min(len(values), _NUM_DRAWS)).astype(int)]


def _described(source: Any, laws: Any) -> str:
    if isinstance(laws, Mapping):
        name, law = next((n, law) for n, law in laws.items() if not isinstance(law, Distribution))
        return f"one with a {type(law).__name__} for {name!r}"
    return f"a {type(source).__name__}" + (
        "" if laws is source else f" whose method returns a {type(laws).__name__}"
    )


def _moments(name: str, site: Site, values: np.ndarray) -> tuple[Array, Array]:
    """Mean and standard deviation of the unconstrained values."""
    support = site["fn"].support
    transform = biject_to(support)

    @jax.jit
    def there_and_back(x: Array) -> tuple[Array, Array]:
        z = transform.inv(x)
        return z, transform(z)

    # A value is in the support if it comes back: the support's own test refuses what float32 rounds, such as a long
    # simplex whose sum is not quite one.
    z, back = map(np.asarray, there_and_back(jnp.asarray(values, float)))
    wrong = ~(np.abs(back - values) <= 1e-5 + 1e-3 * np.abs(values))
    inside = np.isfinite(z)
    if wrong.any() or not inside.any(0).all():
        example = f" (such as {values[wrong][0]:g})" if wrong.any() else ""
        raise ValueError(
            f"Draws of '{name}' in `warm_start` lie outside the support of the site{example}: {support}."
        )
    # Values that were rounded to the edge of the support are at infinity.
    mean = np.mean(z, 0, where=inside)
    sd = np.std(z, 0, where=inside)
    known = sd > 8 * np.finfo(z.dtype).eps * np.abs(mean)
    return jnp.asarray(mean), jnp.asarray(np.where(known, sd, _UNKNOWN_SD))


def start_kernel(kernel: MCMCKernel, warm: WarmStart) -> None:
    """Let chains start at draws of ``warm``, and the mass matrix at its variances.

    Adaptation goes on from there. A mass matrix that the user has set stays; microcanonical samplers and samplers
    without gradients get the positions only, and so do the HMC blocks of a Gibbs sampler.

    Raises:
        ValueError: a kernel that starts from the model alone.
    """
    if isinstance(kernel, Gibbs) and not isinstance(kernel, ParticleGibbs):
        blocks: list[Any] = [block for block in kernel._kernels if isinstance(block, HMC)]
    else:
        blocks = [kernel] if hasattr(kernel, "_init_strategy") else []
    if not blocks:
        refuse_warm_start(type(kernel).__name__)
    for block in blocks:
        block._init_strategy = partial(_near, warm=warm, otherwise=block._init_strategy)
    if isinstance(kernel, HMC) and kernel._inverse_mass_matrix is None:
        kernel._inverse_mass_matrix = _hmc_mass(kernel._dense_mass, warm)
    elif hasattr(kernel, "_adapter"):
        kernel._adapter = _warm_adapter(kernel._adapter, _variances(warm, sorted(warm.shapes)))


def refuse_warm_start(engine: str) -> None:
    raise ValueError(
        f"{engine} cannot start from an approximate posterior: leave out `warm_start` (hint a start with "
        "infer={'init': value}), or use an engine such as 'nuts', 'svi' or 'langevin'."
    )


def _near(site: Site | None = None, *, warm: WarmStart, otherwise: Callable[..., Any]) -> Any:
    """Initialisation strategy: a draw of ``warm``, somewhat wider; other sites follow ``otherwise``."""
    if site is None:
        return partial(_near, warm=warm, otherwise=otherwise)
    if site["type"] != "sample" or site["is_observed"] or site["name"] not in warm.mean:
        return otherwise(site)
    mean, sd = warm.mean[site["name"]], warm.sd[site["name"]]
    noise = jax.random.normal(site["kwargs"]["rng_key"], mean.shape, mean.dtype)
    return biject_to(site["fn"].support)(mean + _OVERDISPERSION * sd * noise)


def _variances(warm: WarmStart, names: Any) -> Array:
    """Variances of sites one after another; one where nothing is known."""
    parts = [jnp.ravel(warm.sd[n] ** 2) if n in warm.sd else jnp.ones(warm.shapes[n]).ravel() for n in names]
    return jnp.concatenate(parts)


def _hmc_mass(dense_mass: bool | list[tuple[str, ...]], warm: WarmStart) -> Any:
    """NumPyro flattens sites in the order of their names, or block by block where the user named blocks."""
    if isinstance(dense_mass, bool):
        return _variances(warm, sorted(warm.shapes))
    rest = tuple(sorted(set(warm.shapes).difference(*dense_mass)))
    return {names: _variances(warm, names) for names in [*dense_mass, rest] if names}


def _warm_adapter(adapter: Callable[[], Any], variances: Array) -> Callable[[], Any]:
    def warm() -> Any:
        begin, update = adapter()
        return partial(begin, inverse_mass_matrix=variances), update

    return warm


def start_guide(params: Mapping[str, Array], guide: Any, warm: WarmStart) -> dict[str, Array]:
    """Parameters of an automatic guide, as its optimiser sees them, with the moments of ``warm``.

    Args:
        params: unconstrained parameters of the guide.
        guide: a normal guide (diagonal, low-rank, full) or a point; its model has been seen.
        warm: the moments.

    Raises:
        ValueError: a guide of another kind, whose parameters are no locations and scales.
    """
    moved = dict(params)
    prefix = getattr(guide, "prefix", "")
    whole = f"{prefix}_loc"
    if isinstance(guide, AutoContinuous) and whole in params and params[whole].shape == (guide.latent_dim,):
        places = guide._unpack_latent(jnp.arange(guide.latent_dim))
        scale = jnp.full(guide.latent_dim, getattr(guide, "_init_scale", _UNKNOWN_SD))
        for name, mean in warm.mean.items():
            moved[whole] = moved[whole].at[places[name]].set(mean)
            scale = scale.at[places[name]].set(warm.sd[name])
        if f"{prefix}_scale" in params:
            moved[f"{prefix}_scale"] = biject_to(guide.scale_constraint).inv(scale)
        if f"{prefix}_scale_tril" in params:
            moved[f"{prefix}_scale_tril"] = biject_to(guide.scale_tril_constraint).inv(jnp.diag(scale))
        return moved
    if not isinstance(guide, AutoGuide) or not all(f"{n}_{prefix}_loc" in params for n in warm.mean):
        name = type(guide).__name__ if isinstance(guide, AutoGuide) else getattr(guide, "__name__", "guide")
        raise ValueError(
            f"The guide {name} has no location and scale for each site to start at `warm_start`: take AutoNormal, "
            "AutoLowRankMultivariateNormal or AutoMultivariateNormal, or start the guide's own parameters there."
        )
    for name, mean in warm.mean.items():
        moved[f"{name}_{prefix}_loc"] = mean
        if f"{name}_{prefix}_scale" in params:
            moved[f"{name}_{prefix}_scale"] = biject_to(guide.scale_constraint).inv(warm.sd[name])
    return moved
