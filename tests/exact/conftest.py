"""These tests run for long rather than compile for long: with XLA's optimisations, which `make test` turns off."""

from __future__ import annotations

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def optimised():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
