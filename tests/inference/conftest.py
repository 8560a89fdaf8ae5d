"""Fits shared by the tests of this folder: compiling is what they cost."""

from functools import partial

import pytest

import sojourn as sj
from sojourn.models import hidden_markov

SETTINGS = {"num_warmup": 400, "num_samples": 500, "num_chains": 4, "progress_bar": False}


@pytest.fixture(scope="session")
def quakes():
    return sj.datasets.earthquakes()["count"]


@pytest.fixture(scope="session")
def two_state():
    return partial(hidden_markov.poisson, num_states=2, name="count")


@pytest.fixture(scope="session")
def nuts_fit(quakes, two_state):
    return sj.fit(two_state, quakes, **SETTINGS)


@pytest.fixture(scope="session")
def svi_fit(quakes, two_state):
    return sj.fit(two_state, quakes, engine="svi", num_samples=2000, progress_bar=False)


@pytest.fixture(scope="session")
def path_fit(quakes, two_state):
    return sj.fit(
        two_state,
        quakes,
        path=True,
        engine="blocked_gibbs",
        num_warmup=300,
        num_samples=1500,
        num_chains=2,
        progress_bar=False,
    )
