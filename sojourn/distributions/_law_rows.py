"""What laws that hold at the same time make of the attributes they write: two ways to pool them."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints
from numpyro.distributions.util import validate_sample

from sojourn._arguments import is_known, must_be, numbers, positive_numbers, shown
from sojourn.ops import law_race

__all__ = ["CompetingLaws", "LawRows", "LogLinearLaws"]

HIDDEN = -2
ELSEWHERE = -1


class LawRows(NamedTuple):
    """Rows: U situations, each of up to C cells that up to M laws may write, each with up to K outcomes a cell.

    Values of a cell are *labels*: 0 is the current value, 1, 2, ... the others that laws name, -1 any that none names,
    -2 not seen.
    """

    law: Any
    """``(U, M)``: numbers of the laws that hold; as many as there are laws means none."""
    writes: Any
    """``(U, M, C)``: whether the law writes the cell."""
    label: Any
    """``(U, M, C, K)``: labels of the outcomes, -1 for none."""
    probs: Any
    """``(U, M, C, K)``: their probabilities."""
    uniform: Any
    """``(U, M, C)``: the law may write any value whatever."""
    attribute: Any
    """``(U, C)``: which attribute the cell is of; as many as there are attributes means no cell."""
    size: Any
    """``(U, C)``: how many values it has."""
    named: Any
    """``(U, C)``: how many of them have a label."""
    several: Any
    """Positions of the rows in which more than one law can fire."""

    @property
    def num_rows(self) -> int:
        """U."""
        return self.law.shape[0]


def _check_rows(rows: Any, noise: Any) -> None:
    must_be(isinstance(rows, LawRows), "rows", "LawRows", rows)
    positive_numbers(noise, "noise")
    if is_known(noise) and not np.asarray(noise) < 1:
        raise ValueError(f"`noise` must be a probability above 0 and below 1, not {shown(noise)}.")


def _vector(values: ArrayLike, name: str, low: float = -np.inf, high: float = np.inf) -> Any:
    """One number for each law, or for each attribute."""
    values = numbers(values, name)
    if np.ndim(values) != 1:
        raise ValueError(f"`{name}` has shape {np.shape(values)}; it must be a vector.")
    if is_known(values):
        known = np.asarray(values)
        bad = known[~((known >= low) & (known <= high))]
        if bad.size:
            raise ValueError(f"`{name}` must lie between {low:g} and {high:g}; it holds {bad[0]:g}.")
    return values


class _Pooled(dist.Distribution):
    support = constraints.independent(constraints.integer_greater_than(HIDDEN - 1), 1)
    arg_constraints: dict[str, Any] = {}
    pytree_data_fields: tuple[str, ...] = ("rows", "probs")

    def _begin(self, rows: LawRows, probs: Any, validate_args: bool | None) -> None:
        self.rows = LawRows(*rows)
        self.probs = (self.rows.probs if probs is None else probs).astype(jnp.result_type(float))
        super().__init__(
            batch_shape=tuple(np.shape(rows.law)[:-1]),
            event_shape=tuple(np.shape(rows.attribute)[-1:]),
            validate_args=validate_args,
        )

    def _padded(self, values: Array) -> Array:
        """With a last entry for "none"."""
        return jnp.append(values, jnp.zeros((1,), values.dtype))

    def _draw(self, u: Array, writer: Array, frame_change: Array, noise: Any) -> Array:
        """Labels of one draw, given which of its laws writes each cell and three uniform numbers a cell."""
        rows = self.rows
        which = jnp.maximum(writer, 0)[:, None, :, None]
        label = jnp.take_along_axis(jnp.asarray(rows.label), which, 1)[:, 0]
        probs = jnp.take_along_axis(self.probs, which, 1)[:, 0]
        anywhere = jnp.take_along_axis(jnp.asarray(rows.uniform), which[..., 0], 1)[:, 0]
        outcome = jnp.take_along_axis(label, _which(u[0], probs)[..., None], -1)[..., 0]
        drawn = jnp.floor(u[1] * rows.size).astype(label.dtype)
        drawn = jnp.where(drawn < jnp.asarray(rows.named), drawn, ELSEWHERE)
        leak = u[2] < jnp.where(writer >= 0, noise, frame_change)
        value = jnp.where(writer >= 0, outcome, 0)
        return jnp.where(leak | (anywhere & (writer >= 0)), drawn, value)


def _which(u: Array, probs: Array) -> Array:
    """The entry of the last axis that a uniform number picks."""
    picked = (u[..., None] >= jnp.cumsum(probs, -1)).sum(-1)
    last = (probs > 0).shape[-1] - 1 - jnp.argmax((probs > 0)[..., ::-1], -1)
    return jnp.minimum(picked, last)


class CompetingLaws(_Pooled):
    r"""Next values of the cells of each row when the laws that hold are competing hazards.

    A law of hazard :math:`w` that nothing competes with happens with probability :math:`1 - e^{-w}`, its *rate*; at
    :math:`w = 0` the density is that of a world without the law. A law that writes several cells writes them all or
    none (see :mod:`sojourn.ops.law_race`). A cell that no law writes keeps its value but for a probability ``change``,
    with which it takes any value: the rate of what the laws do not explain. ``noise`` is the same for what laws write.

    Args:
        hazard: ``(L,)``, not negative.
        change: ``(A,)`` in (0, 1), by attribute.
        rows: :class:`LawRows`.
        probs: ``(U, M, C, K)``, if those of ``rows`` have parameters.
        noise: in (0, 1).
        validate_args: as in NumPyro.

    Shapes: batch ``(U,)``, event ``(C,)``: labels. Cells not seen (-2) are summed out.

    Example:
        A law that would change the one cell: whether it did, or the cell kept its value.

        >>> import jax.numpy as jnp, numpy as np
        >>> from sojourn.distributions import CompetingLaws, LawRows
        >>> rows = LawRows(law=np.array([[0]]), writes=np.array([[[True]]]), label=np.array([[[[1]]]]),
        ...                probs=np.array([[[[1.0]]]]), uniform=np.array([[[False]]]), attribute=np.array([[0]]),
        ...                size=np.array([[10]]), named=np.array([[2]]), several=np.array([], int))
        >>> law = CompetingLaws(-jnp.log(jnp.array([0.3])), jnp.array([1e-4]), rows, noise=1e-4)
        >>> both = jnp.exp(law.log_prob(jnp.array([[1]]))), jnp.exp(law.log_prob(jnp.array([[0]])))
        >>> print([f"{float(p[0]):.2f}" for p in both])
        ['0.70', '0.30']
    """

    arg_constraints = {
        "hazard": constraints.nonnegative,
        "change": constraints.unit_interval,
    }
    pytree_data_fields = ("hazard", "change", "noise", "rows", "probs")

    def __init__(
        self,
        hazard: ArrayLike,
        change: ArrayLike,
        rows: LawRows,
        probs: Any = None,
        *,
        noise: float = 1e-3,
        validate_args: bool | None = None,
    ):
        _check_rows(rows, noise)
        self.hazard = jnp.asarray(_vector(hazard, "hazard", 0.0))
        self.change = jnp.asarray(_vector(change, "change", 0.0, 1.0))
        self.noise = noise
        self._begin(rows, probs, validate_args)

    def _seen(self, value: Any) -> tuple[Any, Array]:
        """Probability of what was seen, by law and cell, and if no law fires."""
        rows = self.rows
        # Data that are NumPy arrays stay so: what does not depend on parameters is then worked out once, here, and
        # not by the compiler's slow folding of constants.
        known = all(isinstance(x, np.ndarray) for x in (value, *rows))
        xp: Any = np if known else jnp
        size = xp.maximum(rows.size, 1)
        hit = (xp.asarray(rows.label) == value[..., None, :, None]) & (value >= 0)[..., None, :, None]
        named = (self.probs * hit).sum(-1)
        exact = (xp if isinstance(named, np.ndarray) else jnp).where(
            rows.uniform, 1.0 / size[:, None, :], named
        )
        seen = (1 - self.noise) * exact + self.noise / size[:, None, :]
        change = self._padded(self.change)[rows.attribute]
        frame = jnp.where(value == 0, 1 - change, 0.0) + change / size
        nothing = (value == HIDDEN) | (xp.asarray(rows.attribute) >= len(self.change))
        seen = (xp if isinstance(seen, np.ndarray) else jnp).where(nothing[..., None, :], 1.0, seen)
        return seen, jnp.where(nothing, 1.0, frame)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """``(U,)``."""
        seen, frame = self._seen(value if isinstance(value, np.ndarray) else jnp.asarray(value))
        seen = jnp.asarray(seen, frame.dtype)
        hazard = self._padded(self.hazard)[self.rows.law]
        writes = jnp.asarray(self.rows.writes)
        log_prob = law_race.at_most_one(hazard, writes, seen, frame)
        some = self.rows.several
        if np.shape(some)[0]:
            joint = law_race.race(hazard[some], writes[some], seen[..., some, :, :], frame[..., some, :])
            log_prob = log_prob.at[..., some].set(joint)
        return log_prob

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Labels."""
        rows = self.rows
        hazard = self._padded(self.hazard)[rows.law]
        change = self._padded(self.change)[rows.attribute]

        some = rows.several
        total = hazard.sum(-1, keepdims=True)
        nothing = jnp.exp(-total)
        which = jnp.concatenate([nothing, (1 - nothing) * hazard / jnp.maximum(total, 1e-30)], -1)

        def one(key):
            key_draw, key_fire = jax.random.split(key)
            u = jax.random.uniform(
                key_draw, (4, *self.batch_shape, *self.event_shape)
            )  # one call: it is slow to compile
            law = _which(u[3, :, 0], which) - 1  # of those that can only fire alone
            wrote = jnp.take_along_axis(jnp.asarray(rows.writes), jnp.maximum(law, 0)[:, None, None], 1)[:, 0]
            writer = jnp.where(wrote & (law >= 0)[:, None], law[:, None], -1)
            if np.shape(some)[0]:
                keys = jax.random.split(key_fire, np.shape(some)[0])
                race = jax.vmap(law_race.fire)(keys, hazard[some], jnp.asarray(rows.writes)[some])
                writer = writer.at[some].set(race.astype(writer.dtype))
            return self._draw(u, writer, change, self.noise)

        keys = jax.random.split(key, int(np.prod(sample_shape, dtype=int)))
        return jax.lax.map(one, keys).reshape(*sample_shape, *self.batch_shape, *self.event_shape)


class LogLinearLaws(_Pooled):
    r"""Next values of the cells of each row when the laws that hold vote, each with its weight.

    .. math:: p(v) \propto \exp \sum_i w_i s_i(v), \qquad s_i(v) = \log\Big(1 + \frac{1 - \epsilon}{\epsilon} V P_i(v)\Big)

    with the probability :math:`P_i(v)` that law i gives to the value :math:`v` of one cell with :math:`V` values, and
    one more vote for "no change". With ``boost=b`` the score is b for the values that a law names and 0 for others,
    which is the pool of OneLife (Khan et al. 2025, b = 10). Each cell is pooled alone: a law's several cells do not
    fire together.

    Args:
        weight: ``(L,)``, not negative.
        frame: ``(A,)``, weight of "no change", by attribute.
        rows: :class:`LawRows` of one cell each.
        probs: ``(U, M, C, K)``, if those of ``rows`` have parameters.
        noise: :math:`\epsilon`.
        boost: see above.
        validate_args: as in NumPyro.

    Shapes: batch ``(U,)``, event ``(C,)``, C = 1: labels.

    Raises:
        ValueError: rows of several cells.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> from sojourn.distributions import LawRows, LogLinearLaws
        >>> rows = LawRows(law=np.array([[0]]), writes=np.array([[[True]]]), label=np.array([[[[1]]]]),
        ...                probs=np.array([[[[1.0]]]]), uniform=np.array([[[False]]]), attribute=np.array([[0]]),
        ...                size=np.array([[3]]), named=np.array([[2]]), several=np.array([], int))
        >>> law = LogLinearLaws(jnp.array([jnp.log(8.0) / 10]), jnp.zeros(1), rows, boost=10.0)
        >>> print(np.asarray(jnp.exp(law.log_prob(jnp.array([[1]])))).round(2))  # 8 / (8 + 1 + 1)
        [0.8...]
    """

    arg_constraints = {"weight": constraints.nonnegative, "frame": constraints.nonnegative}
    pytree_data_fields = ("weight", "frame", "noise", "rows", "probs")
    pytree_aux_fields = ("boost",)

    def __init__(
        self,
        weight: ArrayLike,
        frame: ArrayLike,
        rows: LawRows,
        probs: Any = None,
        *,
        noise: float = 1e-3,
        boost: float | None = None,
        validate_args: bool | None = None,
    ):
        _check_rows(rows, noise)
        if boost is not None:
            boost = positive_numbers(boost, "boost")
        if np.shape(rows.attribute)[-1] > 1:
            raise ValueError("LogLinearLaws pools each cell alone; its rows have several cells.")
        self.weight = jnp.asarray(_vector(weight, "weight"))
        self.frame = jnp.asarray(_vector(frame, "frame"))
        self.noise = noise
        self.boost = boost
        self._begin(rows, probs, validate_args)

    def _scores(self) -> tuple[Array, Array]:
        """``(U, J)``: of each label (-inf where there is none); ``(U,)``: of a value without a label."""
        rows = self.rows
        label = jnp.asarray(rows.label)[..., 0, :]  # (U, M, K)
        num_labels = 1 + label.shape[-2] * label.shape[-1]
        codes = jnp.arange(num_labels)
        size = jnp.asarray(rows.size)
        kappa = (1 - self.noise) / self.noise * size
        named = (self.probs[..., 0, :, None] * (label[..., None] == codes)).sum(-2)  # (U, M, J)
        named = jnp.where(rows.uniform, 1.0 / size[..., None], named)

        def score(p, kappa):
            return jnp.log1p(kappa * p) if self.boost is None else self.boost * (p > 0)

        vote = score(named, kappa[..., None]) * rows.writes
        total = (self._padded(self.weight)[rows.law][..., None] * vote).sum(-2)
        frame = self._padded(self.frame)[rows.attribute]  # (U, 1)
        total = total + frame * score(1.0 * (codes == 0), kappa)
        rest = self._rest_score(rows, kappa, score)
        return jnp.where(codes < jnp.asarray(rows.named), total, -jnp.inf), rest

    def _logits(self, scores: Array, rest: Array) -> Array:
        """``(U, J + 1)``: of each label, and of all values together that have none."""
        size, named = jnp.asarray(self.rows.size)[..., 0], jnp.asarray(self.rows.named)[..., 0]
        unnamed = jnp.where(size > named, jnp.log(jnp.maximum(size - named, 1)) + rest, -jnp.inf)
        return jnp.concatenate([scores, unnamed[..., None]], -1)

    def _rest_score(self, rows: LawRows, kappa: Array, score: Any) -> Array:
        """Score of a value that none names: only uniform votes reach it."""
        everywhere = jnp.where(rows.uniform, 1.0 / jnp.asarray(rows.size)[..., None], 0.0)
        vote = score(everywhere, kappa[..., None])[..., 0] * jnp.asarray(rows.writes)[..., 0]
        return (self._padded(self.weight)[rows.law] * vote).sum(-1)

    @validate_sample
    def log_prob(self, value: ArrayLike) -> Array:
        """``(U,)``."""
        value = jnp.asarray(value)[..., 0]
        scores, rest = self._scores()
        total = jax.nn.logsumexp(self._logits(scores, rest), -1)
        of_label = jnp.where(
            value >= 0,
            jnp.take_along_axis(scores, jnp.maximum(value, 0)[..., None], -1)[..., 0],
            rest,
        )
        return jnp.where(value == HIDDEN, 0.0, of_label - total)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Labels."""
        scores, rest = self._scores()
        logits = self._logits(scores, rest)
        drawn = jax.random.categorical(key, logits, shape=(*sample_shape, *self.batch_shape))
        return jnp.where(drawn == scores.shape[-1], ELSEWHERE, drawn)[..., None]
