"""Every set of laws that can have fired, each with its probability."""

import itertools

import numpy as np
from scipy.linalg import expm


def enumerated(hazard, writes, seen, frame):
    """A Markov jump process on sets of laws: from each, any law of untouched cells may be the next to fire."""
    laws = range(len(hazard))

    def apart(chosen):
        return all(not (writes[i] & writes[j]).any() for i, j in itertools.combinations(chosen, 2))

    sets = [s for n in range(len(hazard) + 1) for s in itertools.combinations(laws, n) if apart(s)]
    place = {s: k for k, s in enumerate(sets)}
    rates = np.zeros((len(sets), len(sets)))
    for s in sets:
        for law in laws:
            larger = tuple(sorted({*s, law}))
            if law not in s and larger in place:
                rates[place[s], place[larger]] += hazard[law]
                rates[place[s], place[s]] -= hazard[law]
    fired = expm(rates)[0]
    total = 0.0
    for s in sets:
        written = np.zeros(len(frame), bool)
        term = fired[place[s]]
        for law in s:
            term *= seen[law][writes[law]].prod()
            written |= writes[law]
        total += term * frame[~written].prod()
    return total
