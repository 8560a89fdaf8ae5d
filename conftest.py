"""For the tests and for the examples in docstrings alike."""

from __future__ import annotations

import gc

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped():
    """After each file: XLA maps memory for every program, and the kernel allows a process 65530 maps."""
    yield
    jax.clear_caches()
    gc.collect()
