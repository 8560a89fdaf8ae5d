"""Covariances of stationary processes, to declare a model of their excursions with (see :mod:`sojourn.ops.covariance`).

>>> from sojourn.models import covariance
>>> print(f"{covariance.Matern52().with_mean_interval(10.0).mean_interval():.3f}")
10.000
"""

from sojourn.ops.covariance import (
    Covariance,
    DampedCosine,
    Diffusion,
    FromFunction,
    Matern32,
    Matern52,
    RandomAcceleration,
    RationalQuadratic,
    SquaredExponential,
)

__all__ = [
    "Covariance",
    "DampedCosine",
    "Diffusion",
    "FromFunction",
    "Matern32",
    "Matern52",
    "RandomAcceleration",
    "RationalQuadratic",
    "SquaredExponential",
]
