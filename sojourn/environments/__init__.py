"""Worlds to learn: stochastic environments as pure functions of a state, an action and a random generator.

:class:`Meadow` is a small grid world whose law is known exactly; ``crafter`` wraps the real Crafter (Hafner 2022),
which the extra ``sojourn[crafter]`` installs. ``hooks`` adds one kind of stochasticity after
another to any pure environment, or to what was recorded.
"""

from sojourn.environments import hooks
from sojourn.environments.meadow import Meadow
from sojourn.environments.transitions import Environment, Policy, State, Transitions, record, stack

__all__ = ["Environment", "Meadow", "Policy", "State", "Transitions", "hooks", "record", "stack"]
