"""The choice among the samplers that follow gradients: which one when."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from numpyro.distributions import constraints
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.inspect import get_dependencies

from sojourn._contract import Site
from sojourn.inference._check_model import latent_sites
from sojourn.inference._path_system import PathSystem
from sojourn.inference._structure import scan_numbers
from sojourn.inference._unconstrained import unconstrained_size
from sojourn.inference.guides import PathGuide, PseudoObservationGuide

__all__ = ["choose_engine", "choose_guide"]

_FEW = 10
_WIDE = 48  # states and noise of a system up to which it is linearised at every step
_POSITIVE = tuple(type(c) for c in (constraints.positive, constraints.nonnegative))


def choose_engine(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], trace: Mapping[str, Site]
) -> tuple[str, str]:
    """An engine for a model with continuous latents, and the reason.

    The rules, from the measurements of ``benchmarks/langevin.py`` (see ``docs/which_sampler.md``):

    * under 10 latent numbers: NUTS. All samplers are quick there, and NUTS is the reference.
    * a hierarchy of scales (the prior of one latent depends on another that is positive and unknown): NUTS, which
      manages the funnel of such a density best.
    * a latent that is bounded, on one side or two: MALT. On the unconstrained scale its density has walls, where NUTS
      is slow and diverges, and where a sampler without a Metropolis test can be thrown off.
    * otherwise MCLMC, whose bias the fit measures and the check reports.

    Example:
        >>> import jax, jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from sojourn._contract import trace_model
        >>> def model():
        ...     numpyro.sample("x", dist.Normal(jnp.zeros(30), 1.0).to_event(1))
        >>> choose_engine(model, (), {}, trace_model(model, (), {}, key=jax.random.key(0)))[0]
        'mclmc'
    """
    latent = latent_sites(trace)
    size = sum(unconstrained_size(site) for site in latent.values())
    count = f"{size} latent number{'s' * (size != 1)}"
    if size < _FEW:
        return (
            "nuts",
            f"NUTS: with {count} every sampler is quick, and NUTS, which is exact, is the reference.",
        )
    hierarchy = _hierarchy(model, args, kwargs, latent)
    if hierarchy:
        scale, child = hierarchy
        return "nuts", (
            f"NUTS: the prior of '{child}' depends on '{scale}', which is positive and unknown; such a hierarchy of "
            "scales is a funnel, and NUTS manages it best."
        )
    bounded = next((name for name, site in latent.items() if not _is_real(site["fn"].support)), None)
    if bounded is not None:
        return "langevin", (
            f"MALT: {count}, and '{bounded}' is bounded, so that the density has walls: that asks for an exact sampler, "
            "and MALT needs fewer gradients there than NUTS."
        )
    return "mclmc", (
        f"MCLMC: {count}, none of them bounded and no hierarchy of scales, where it needs the fewest gradients; its "
        "bias is measured by a rerun at half the step."
    )


def choose_guide(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, str | None]:
    """A guide for variational inference and, where it is a guide of the path, the reason.

    * a ``scan`` whose latent sites are all normal, of at most 48 states and noises for each independent system: the
      pseudo-observation guide;
    * another ``scan`` with continuous latent sites: a path guide, its control linear in the state;
    * anything else, and several scans with latent sites: a multivariate normal on the unconstrained space.

    Example:
        >>> import jax.numpy as jnp, numpyro, numpyro.distributions as dist
        >>> from numpyro.contrib.control_flow import scan
        >>> def walk(y):
        ...     def step(x, y_t):
        ...         x = numpyro.sample("x", dist.Normal(x, 0.5))
        ...         numpyro.sample("y", dist.Normal(x, 1.0), obs=y_t)
        ...         return x, None
        ...     scan(step, 0.0, y)
        >>> guide, reason = choose_guide(walk, (jnp.zeros(5),), {})
        >>> guide.__name__
        'PseudoObservationGuide'
    """
    if not scan_numbers(model, args, kwargs):
        return AutoMultivariateNormal, None
    try:
        system = PathSystem(model, args, kwargs)
    except (ValueError, NotImplementedError) as error:
        return AutoMultivariateNormal, f"AutoMultivariateNormal, for want of a path guide: {error}"
    latent = [*system.noise_sites, *system.other_sites, *system.parameters]
    if any(system.facts[n]["discrete"] for n in latent):
        return AutoMultivariateNormal, None
    where = f"scan of {system.length} steps over {', '.join(repr(n) for n in system.structure.path_sites)}"
    if system.other_sites:
        odd = next(iter(system.other_sites))
        return partial(PathGuide, control="linear"), f"PathGuide: {where}, of which '{odd}' is not normal"
    if system.num_states + system.num_noise > _WIDE:
        wide = f"{system.num_states} states and {system.num_noise} noises a system are too many to linearise"
        return partial(PathGuide, control="network"), f"PathGuide: {where}; {wide}"
    return PseudoObservationGuide, f"PseudoObservationGuide: {where}, continuous with normal increments"


def _hierarchy(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], latent: Mapping[str, Site]
) -> tuple[str, str] | None:
    """A positive latent on which the prior of another depends, and that other."""
    try:
        parents = get_dependencies(model, args, dict(kwargs))["prior_dependencies"]
    except Exception:  # NumPyro's analysis does not follow every primitive; without it, err on the safe side
        first, *rest = latent
        return (first, rest[0]) if rest else None
    for child in latent:
        for parent in parents.get(child, ()):
            if parent == child or parent not in latent:
                continue
            if isinstance(latent[parent]["fn"].support, _POSITIVE):
                return parent, child
    return None


def _is_real(support: constraints.Constraint) -> bool:
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    return support is constraints.real
