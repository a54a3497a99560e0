"""A time slice (or a look) as a share that was bad, in PromQL."""

from __future__ import annotations

from alerts.slo.indicator import Events
from alerts.slo.objective import Objective


def slice_error(objective: Objective, measured: str = "", ignoring: str = "") -> str:
    """The share of the slice that ends now that was bad; nothing where nothing was seen.

    `measured` is an expression of the slice's events, or of the value that is looked at, with labels to be ignored;
    without it the objective's own query stands there.
    """
    indicator = objective.indicator
    if isinstance(indicator, Events):
        width = objective.slice_seconds
        total = measured or indicator.total_over(width)
        share = f"{indicator.bad_over(width, total, ignoring)} /{ignoring} ({total} >= {objective.enough_in_slice:g})"
    else:
        share = indicator.bad(measured or f"({indicator.query})")
    if objective.method == "Timeslices":
        return f"({share}) > bool {round(1.0 - objective.slice_target, 12):g}"
    return share
