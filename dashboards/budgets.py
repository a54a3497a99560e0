"""The error budgets of objectives, read out of what their rules recorded. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dashboards.series import Series
from observability import names

BURNS = ("now", "1h", "6h", "3d")
_OWN = ("__name__", "slo", "service")


@dataclass(frozen=True, slots=True)
class Budget:
    """One budget. `left` is 1 untouched, 0 spent, below 0 overdrawn; a burn rate of 1 spends it just in the period."""

    slo: str
    title: str
    labels: Mapping[str, str]
    objective: str
    period: str
    left: float | None
    burns: Mapping[str, float]


def queries() -> dict[str, str]:
    """Instant queries of all budgets: plain series, which rules have recorded."""
    ratios = {f"ratio {span}": f"{names.SLO_ERROR_RATIO}{span}" for span in BURNS[1:]}
    return {
        "left": names.SLO_BUDGET_LEFT,
        "now": names.SLO_BURN_RATE,
        "budget": names.SLO_BUDGET,
        "info": names.SLO_INFO,
        **ratios,
    }


def budgets(found: Mapping[str, Sequence[Series]], model: str | None) -> list[Budget]:
    """The budgets of a model, and those that are of no single model, the emptiest first."""
    shares = {_key(item): item.last for item in found["budget"]}
    spent: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}
    known: dict[tuple[tuple[str, str], ...], Series] = {}

    def note(item: Series, name: str, value: float | None) -> None:
        if value is not None and item.labels.get("model") in (None, model):
            group = tuple(sorted((key, text) for key, text in item.labels.items() if key != "__name__"))
            known[group] = item
            spent.setdefault(group, {})[name] = value

    for item in found["left"]:
        note(item, "left", item.last)
    for item in found["now"]:
        note(item, "now", item.last)
    for span in BURNS[1:]:
        for item in found[f"ratio {span}"]:
            share = shares.get(_key(item))
            note(item, span, item.last / share if item.last is not None and share else None)
    infos = {_key(item): item.labels for item in found["info"]}
    listed = []
    for group, values in spent.items():
        labels = known[group].labels
        info = infos.get(_key(known[group]), {})
        listed.append(
            Budget(
                slo=labels.get("slo", ""),
                title=info.get("title", labels.get("slo", "")),
                labels={key: text for key, text in labels.items() if key not in _OWN},
                objective=info.get("objective", ""),
                period=info.get("period", ""),
                left=values.get("left"),
                burns={name: values[name] for name in BURNS if name in values},
            )
        )
    return sorted(listed, key=lambda budget: (budget.left is None, budget.left or 0.0, budget.slo))


def _key(item: Series) -> tuple[str, str]:
    return item.labels.get("slo", ""), item.labels.get("service", "")
