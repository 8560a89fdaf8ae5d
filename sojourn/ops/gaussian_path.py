r"""Stationary Gaussian paths on a regular grid, exactly, by circulant embedding.

The covariance matrix of ``n`` equally spaced values is Toeplitz, with entries :math:`r(|i - j|\,dt)`. It is a
corner of the circulant matrix of size :math:`m = 2 (n - 1)` whose first row is :math:`r_0, \ldots, r_{n-1},
r_{n-2}, \ldots, r_1`, and a Fourier transform takes the square root of a circulant, in :math:`O(n \log n)`
(Davies and Harte 1987, *Biometrika* 74:95; Wood and Chan 1994, *J. Comput. Graph. Stat.* 3:409). The corner
is then exact. It needs the circulant to be nonnegative definite, which the Toeplitz matrix does not ensure,
but a long enough record does where the covariance is summable (Dietrich and Newsam 1997, *SIAM J. Sci.
Comput.* 18:1088).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

__all__ = ["embedding_eigenvalues", "path_from_noise", "relative_minimum", "sample_paths"]

_TOLERANCE = -1e-6
"""Smallest eigenvalue over the largest: what is below is an embedding that fails, not rounding."""

_ROUNDING = 4.0
"""Bound of the rounding error of an eigenvalue, in machine epsilons times the norm of the circulant's row:
its root mean square is about one (measured in single precision for squared exponentials and Matérn 3/2, at 10
to 10 000 steps a length scale)."""


def embedding_eigenvalues(autocovariance: ArrayLike) -> Array:
    r"""``(..., n)`` eigenvalues of the circulant that holds the covariance matrix of ``n`` values.

    Those of frequencies :math:`k / (m\,dt)`, :math:`k = 0, \ldots, n - 1`, with :math:`m = 2 (n - 1)`; all
    but the first and the last occur twice. Divided by ``m`` they are the variances by frequency, and sum to
    ``r(0)``.

    Args:
        autocovariance: ``(..., n)``, the values :math:`r(0), r(dt), \ldots, r((n - 1)\,dt)`, two at least.

    Raises:
        ValueError: fewer than two values; unless traced, a value that is not finite, or a variance ``r(0)``
            that is not positive. Negative eigenvalues are given as they are: see :func:`relative_minimum`.

    Example:
        >>> import jax.numpy as jnp
        >>> print(embedding_eigenvalues(jnp.array([1.0, 0.5, 0.25])))  # of the row 1, 1/2, 1/4, 1/2
        [2.25 0.75 0.25]
    """
    _check(autocovariance)
    autocovariance = jnp.asarray(autocovariance)
    return _eigenvalues(autocovariance.astype(jnp.result_type(float, autocovariance)), jnp)


def relative_minimum(autocovariance: ArrayLike) -> Array:
    """``(...)``: the smallest eigenvalue of the embedding over the largest.

    At or above zero but for rounding, the embedding is exact. Below -1e-6, :func:`sample_paths` refuses it.

    Example:
        >>> import jax.numpy as jnp
        >>> lag = jnp.arange(64) * 0.05
        >>> bool(relative_minimum(jnp.exp(-lag)) > 0), bool(relative_minimum(jnp.exp(-(lag**2) / 2)) < -1e-6)
        (True, True)
    """
    eigenvalues = embedding_eigenvalues(autocovariance)
    return eigenvalues.min(-1) / eigenvalues.max(-1)


def sample_paths(key: Array, autocovariance: ArrayLike, sample_shape: tuple[int, ...] = ()) -> Array:
    r"""Independent stationary Gaussian paths of mean zero with a given autocovariance.

    Exact in law up to rounding, where the embedding has no negative eigenvalue; eigenvalues down to -1e-6 of
    the largest are taken for zero. Differentiable in the autocovariance, the random numbers held fixed.

    In single precision rounding leaves a little white noise on a smooth path, by which it crosses levels more
    often than it should once there are some 1000 steps to a length scale: count crossings in double
    precision.

    Args:
        key: random key.
        autocovariance: ``(..., n)``, the values :math:`r(0), r(dt), \ldots, r((n - 1)\,dt)`; a batch of them
            gives independent paths.
        sample_shape: how many paths.

    Returns:
        ``(*sample_shape, ..., n)``, as many values as there are covariances, each of variance ``r(0)``.

    Raises:
        ValueError: as :func:`embedding_eigenvalues`, and where an eigenvalue is below -1e-6 times the
            largest. Under ``jit``, ``grad`` or ``vmap``, which hide the values, such paths are NaN.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> lag = jnp.arange(1000) * 0.05
        >>> paths = sample_paths(jax.random.key(0), jnp.exp(-(lag**2) / 2), (3,))
        >>> paths.shape, bool(abs(paths.std() - 1.0) < 0.3)
        ((3, 1000), True)
    """
    _check(autocovariance)
    shape = np.shape(autocovariance)
    dtype = jnp.result_type(float, jnp.asarray(autocovariance))
    noise = jax.random.normal(key, (*sample_shape, *shape[:-1], 2 * (shape[-1] - 1)), dtype)
    return path_from_noise(noise, autocovariance)


def path_from_noise(noise: ArrayLike, autocovariance: ArrayLike) -> Array:
    r"""The path that standard normal numbers make: linear in them, and so a non-centred form of the path.

    With :math:`\lambda` the eigenvalues of the embedding and :math:`w` the noise,
    :math:`x_j = m^{-1/2} \sum_k \lambda_k^{1/2} w_k (\cos + \sin)(2 \pi j k / m)`. The functions
    :math:`\cos + \sin` are real orthogonal eigenvectors of every symmetric circulant (Hartley 1942, *Proc.
    IRE* 30:144), so that one real number a frequency is enough.

    Args:
        noise: ``(..., 2 (n - 1))``.
        autocovariance: ``(..., n)``, as for :func:`sample_paths`.

    Returns:
        ``(..., n)``.

    Raises:
        ValueError: as :func:`sample_paths`, and noise of another length.

    Example:
        >>> import jax.numpy as jnp
        >>> root = path_from_noise(jnp.eye(4), jnp.array([1.0, 0.5, 0.25]))  # (4, 3): noise to path
        >>> print((root.T @ root).round(2))
        [[1.   0.5  0.25]
         [0.5  1.   0.5 ]
         [0.25 0.5  1.  ]]
    """
    _check(autocovariance)
    _refuse_indefinite(autocovariance)
    autocovariance, noise = jnp.asarray(autocovariance), jnp.asarray(noise)
    autocovariance = autocovariance.astype(jnp.result_type(float, autocovariance))
    size = 2 * (autocovariance.shape[-1] - 1)
    if noise.ndim == 0 or noise.shape[-1] != size:
        raise ValueError(
            f"`noise` has shape {noise.shape}; {autocovariance.shape[-1]} autocovariances need (..., {size})."
        )
    eigenvalues = _eigenvalues(autocovariance, jnp)
    root = _mirrored(_square_root(eigenvalues, autocovariance), jnp)
    transformed = jnp.fft.rfft(root * noise)
    path = (transformed.real - transformed.imag) / np.sqrt(size)
    # A wrong covariance would go unnoticed, NaN does not.
    definite = eigenvalues.min(-1) >= _TOLERANCE * eigenvalues.max(-1)
    return jnp.where(definite[..., None], path, jnp.nan)


def _mirrored(values, numpy):
    """``(..., 2 (n - 1))``: the row of the circulant, or its eigenvalues, from the first ``n`` of them."""
    return numpy.concatenate([values, values[..., -2:0:-1]], -1)


def _eigenvalues(autocovariance, numpy):
    return numpy.fft.rfft(_mirrored(autocovariance, numpy)).real


def _square_root(eigenvalues: Array, autocovariance: Array) -> Array:
    """Zero, with derivative zero, for eigenvalues within the rounding error of the transform.

    Kept, that error would be white noise on the path, and make a smooth one cross a level again and again.
    """
    size = jnp.sqrt((_mirrored(autocovariance, jnp) ** 2).sum(-1, keepdims=True))
    kept = eigenvalues > _ROUNDING * jnp.finfo(eigenvalues.dtype).eps * jax.lax.stop_gradient(size)
    return jnp.where(kept, jnp.sqrt(jnp.where(kept, eigenvalues, 1.0)), 0.0)


def _check(autocovariance: ArrayLike) -> None:
    shape = np.shape(autocovariance)
    if len(shape) == 0 or shape[-1] < 2:
        raise ValueError(
            f"`autocovariance` has shape {shape}; it needs (..., n), values r(0), r(dt), ..., two at least."
        )
    if isinstance(autocovariance, jax.core.Tracer):
        return
    values = np.asarray(autocovariance, float)
    if not np.isfinite(values).all():
        raise ValueError(
            f"`autocovariance` is not finite at lag {np.argwhere(~np.isfinite(values))[0][-1]} (in steps)."
        )
    if (values[..., 0] <= 0).any():
        raise ValueError(
            f"`autocovariance` begins with r(0) = {values[..., 0].min():.6g}, the variance; it must be "
            "above 0."
        )


def _refuse_indefinite(autocovariance: ArrayLike) -> None:
    if isinstance(autocovariance, jax.core.Tracer):
        return
    # NumPy: under a surrounding jit, JAX would trace even what is known.
    eigenvalues = _eigenvalues(np.asarray(autocovariance, float), np)
    relative = (eigenvalues.min(-1) / eigenvalues.max(-1)).min()
    if relative < _TOLERANCE:
        raise ValueError(
            f"The circulant embedding of `autocovariance` has an eigenvalue {relative:.2g} times its "
            "largest: lengthen the record (more lags, until the autocovariance has died out), then cut "
            "the paths; if "
            "that does not help, it is not positive definite, and no stationary process has it."
        )
