"""One program of the first-draw benchmark, run by ``hidden_markov.py`` in a fresh interpreter.

    python benchmarks/first_draw.py PROGRAM [--compilations] < counts.json

``PROGRAM`` is one of

* ``sojourn``: NUTS on ``sojourn.models.hidden_markov.poisson``, three states;
* ``written``: NUTS on the same law as a NumPyro user writes it, the forward algorithm a ``lax.scan`` whose
  result goes into ``numpyro.factor`` (as in NumPyro's own example of a hidden Markov model);
* ``enumerated``: NUTS on the same law with the states as discrete sites that NumPyro sums out (funsor);
* ``fit``: the whole of ``sojourn.fit``, with its replicated data and ArviZ container;
* ``densities``: no timing; the log-density of all three models at one point.

Standard input holds the counts as a JSON list. The clock starts before the first import and stops when the
draws are there: 10 of warm-up and 10 kept, one chain. Standard output gets one JSON object.
``--compilations`` lists what XLA compiled and who asked for it, in place of an honest timing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

NUM_STATES = 3
NUM_WARMUP = NUM_SAMPLES = 10


def written_model(counts: Any) -> None:
    """The law of ``hidden_markov.poisson`` in plain NumPyro."""
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from jax import lax
    from jax.nn import logsumexp

    rate, transition, initial = _parameters(counts)
    log_transition = jnp.log(transition)
    log_emission = dist.Poisson(rate).log_prob(counts[:, None])

    def step(log_prob: Any, log_emission_t: Any) -> tuple[Any, None]:
        return logsumexp(log_prob[:, None] + log_transition, axis=0) + log_emission_t, None

    last, _ = lax.scan(step, jnp.log(initial) + log_emission[0], log_emission[1:])
    numpyro.factor("forward_log_prob", logsumexp(last))


def enumerated_model(counts: Any) -> None:
    """The same law with the states as sites, summed out by NumPyro."""
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan

    rate, transition, initial = _parameters(counts)

    def step(state: Any, count: Any) -> tuple[Any, None]:
        state = numpyro.sample("state", dist.Categorical(transition[state]), infer={"enumerate": "parallel"})
        numpyro.sample("count", dist.Poisson(rate[state]), obs=count)
        return state, None

    first = numpyro.sample("first_state", dist.Categorical(initial), infer={"enumerate": "parallel"})
    numpyro.sample("first_count", dist.Poisson(rate[first]), obs=counts[0])
    scan(step, first, counts[1:])


def _parameters(counts: Any) -> tuple[Any, Any, Any]:
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist
    from numpyro.distributions import constraints

    ordered = dist.ImproperUniform(constraints.positive_ordered_vector, (), (NUM_STATES,))
    rate = numpyro.sample("rate", ordered)
    numpyro.factor("rate_prior", dist.LogNormal(np.log(counts.mean()), 1.0).log_prob(rate).sum())
    transition = numpyro.sample("transition", dist.Dirichlet(jnp.ones((NUM_STATES, NUM_STATES))).to_event(1))
    balance = (jnp.eye(NUM_STATES) - transition + 1.0).T
    return rate, transition, jnp.linalg.solve(balance, jnp.ones(NUM_STATES))


def run_nuts(model: Callable[..., Any], counts: Any, **kwargs: Any) -> Any:
    import jax
    from numpyro.infer import MCMC, NUTS

    mcmc = MCMC(NUTS(model), num_warmup=NUM_WARMUP, num_samples=NUM_SAMPLES, num_chains=1, progress_bar=False)
    mcmc.run(jax.random.PRNGKey(0), counts, **kwargs)
    return jax.block_until_ready(mcmc.get_samples())


def sojourn(counts: Any) -> Any:
    from sojourn.models import hidden_markov

    return run_nuts(hidden_markov.poisson, counts, num_states=NUM_STATES)


def written(counts: Any) -> Any:
    return run_nuts(written_model, counts)


def enumerated(counts: Any) -> Any:
    return run_nuts(enumerated_model, counts)


def fit(counts: Any) -> Any:
    import sojourn as sj
    from sojourn.models import hidden_markov

    return sj.fit(
        hidden_markov.poisson,
        counts,
        num_states=NUM_STATES,
        num_warmup=NUM_WARMUP,
        num_samples=NUM_SAMPLES,
        num_chains=1,
        progress_bar=False,
    )


PROGRAMS: dict[str, Callable[[Any], Any]] = {
    "sojourn": sojourn,
    "written": written,
    "enumerated": enumerated,
    "fit": fit,
}


def densities(counts: Any) -> dict[str, float]:
    """Log-density of each model at one point. ``sojourn`` sorts its rates, which adds the log of 3!."""
    import jax.numpy as jnp
    from numpyro.contrib.funsor import config_enumerate, enum
    from numpyro.contrib.funsor.infer_util import log_density as enumerated_log_density
    from numpyro.infer.util import log_density

    from sojourn.models import hidden_markov

    rates = jnp.array([13.0, 20.0, 30.0])
    transition = jnp.array([[0.9, 0.07, 0.03], [0.05, 0.9, 0.05], [0.05, 0.2, 0.75]])
    point = {"rate": rates, "transition": transition}
    summed = enum(config_enumerate(enumerated_model), -1)
    return {
        "sojourn": float(log_density(hidden_markov.poisson, (counts,), {"num_states": NUM_STATES}, point)[0]),
        "written": float(log_density(written_model, (counts,), {}, point)[0]),
        "enumerated": float(enumerated_log_density(summed, (counts,), {}, point)[0]),
    }


def watch_compilations() -> list[dict[str, Any]]:
    """Record every XLA compilation from here on: its name, seconds, and the caller outside JAX."""
    from jax._src import compiler

    found: list[dict[str, Any]] = []
    compile_and_load = compiler.backend_compile_and_load

    def watched(backend: Any, module: Any, *args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        executable = compile_and_load(backend, module, *args, **kwargs)
        seconds = time.perf_counter() - started
        name = str(module.operation.attributes["sym_name"]).strip('"')
        found.append({"name": name, "seconds": seconds, "caller": _caller()})
        return executable

    compiler.backend_compile_and_load = watched
    return found


def _caller() -> str:
    """The innermost frame outside JAX, and the innermost one outside NumPyro too."""
    outside: list[str] = []
    for frame in reversed(traceback.extract_stack()):
        parts = frame.filename.replace("\\", "/").split("/")
        if "jax" in parts or frame.name in ("watched", "_caller") or "contextlib.py" in parts:
            continue
        top = next((i for i, part in enumerate(parts) if part in ("numpyro", "sojourn")), len(parts) - 1)
        outside.append(f"{'/'.join(parts[top:])}:{frame.lineno} {frame.name}")
        if parts[top] != "numpyro":
            break
    return " < ".join(dict.fromkeys((outside[0], outside[-1]))) if outside else "?"


def main() -> None:
    counts_given = json.load(sys.stdin)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("program", choices=[*PROGRAMS, "densities"])
    parser.add_argument("--compilations", action="store_true")
    options = parser.parse_args()

    started, cpu_started = time.perf_counter(), time.process_time()
    if options.program in ("sojourn", "fit"):
        import sojourn as _package
    else:
        import numpyro as _package  # noqa: F401 - the import is what is timed
    imported = time.perf_counter() - started
    compilations = watch_compilations() if options.compilations else []
    import numpy as np

    counts = np.asarray(counts_given)
    result: dict[str, Any] = {}
    if options.program == "densities":
        result["densities"] = densities(counts)
    else:
        PROGRAMS[options.program](counts)
        result["seconds"] = time.perf_counter() - started
        result["cpu_seconds"] = time.process_time() - cpu_started
        result["import_seconds"] = imported
        result["compilations"] = compilations
    print(json.dumps(result))


if __name__ == "__main__":
    main()
