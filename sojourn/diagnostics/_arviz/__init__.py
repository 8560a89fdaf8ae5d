"""The one place where the two generations of ArviZ differ.

ArviZ 0.x (Python 3.11) keeps a fit in `arviz.InferenceData`; ArviZ 1.x (Python 3.12 and later) keeps it in
`xarray.DataTree`, and its plots return a `PlotCollection`. The rest of `sojourn.diagnostics` sees plain
`xarray.Dataset` groups and matplotlib figures and need not know which generation is installed.

ArviZ and matplotlib are imported inside the functions: importing sojourn must stay fast.
"""

from sojourn.diagnostics._arviz._containers import (
    GROUPS,
    attributes,
    container,
    group,
    require_posterior,
    with_groups,
)
from sojourn.diagnostics._arviz._convergence import bfmi, ess, rhat, summary
from sojourn.diagnostics._arviz._generation import arviz_module, generation
from sojourn.diagnostics._arviz._leave_one_out import (
    compare,
    log_likelihood,
    loo,
    psis,
    psis_khat,
    relative_efficiency,
)
from sojourn.diagnostics._arviz._plots import RANK_CAPTION, plot_forest, plot_rank, plot_trace

__all__ = [
    "GROUPS",
    "RANK_CAPTION",
    "arviz_module",
    "attributes",
    "bfmi",
    "compare",
    "container",
    "ess",
    "generation",
    "group",
    "log_likelihood",
    "loo",
    "plot_forest",
    "plot_rank",
    "plot_trace",
    "psis",
    "psis_khat",
    "relative_efficiency",
    "require_posterior",
    "rhat",
    "summary",
    "with_groups",
]
