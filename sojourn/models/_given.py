"""What several systems are given, read in one way: priors, emissions, and fits to ask."""

from __future__ import annotations

from typing import Any

import numpyro.distributions as dist

from sojourn._arguments import shown

__all__ = ["check_emission", "check_priors", "posterior_of"]


def check_priors(**priors: Any) -> None:
    """Refuse a prior that is neither ``None`` nor a distribution."""
    for name, prior in priors.items():
        if prior is not None and not isinstance(prior, dist.Distribution):
            raise ValueError(
                f"`{name}` must be a NumPyro distribution, such as dist.Normal(0.0, 1.0), not {shown(prior)}."
            )


def check_emission(emission: Any) -> None:
    if not callable(emission):
        raise ValueError(
            "`emission` must be a function that takes `num_states` and returns the law of one observation as a function "
            f"of the state, not {shown(emission)}."
        )


def posterior_of(fit: Any) -> Any:
    """The posterior of a fit, or of any object that has one as an attribute or by name.

    Raises:
        TypeError: no fit.

    Example:
        >>> posterior_of([1.0, 2.0])
        Traceback (most recent call last):
        TypeError: `fit` must be the result of sj.fit, with a `posterior`, not [1.0, 2.0].
    """
    if not isinstance(fit, str) and hasattr(fit, "posterior"):
        return fit.posterior
    raise TypeError(f"`fit` must be the result of sj.fit, with a `posterior`, not {shown(fit)}.")
