"""Learning that never ends, on the training page: online learners, federations and parameter servers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from dashboards import format as fmt
from dashboards import readings, shell
from dashboards.series import Series
from dashboards.stats import Stat, stats

Found = Mapping[str, Sequence[Series]]


def learners(view: shell.View, found: Found) -> None:
    """A card for each way of learning that the model knows; none for the others."""
    if found["online_events"]:
        with shell.card("online", "Online learner", "predictions made before learning, against the stable version's"):
            _online(view, found)
    if found["federated_round"]:
        with shell.card("federation", "Federation", "rounds, and what its clients send"):
            _federation(view, found)
    if found["server_workers"]:
        with shell.card("servers", "Parameter servers", "workers and updates, by server"):
            _servers(found)


def _online(view: shell.View, found: Found) -> None:
    loss = {item.labels.get("learner", ""): item.last for item in found["online_loss"]}
    excess = {item.labels.get("bound", ""): item.last for item in found["online_excess"]}
    kept = {item.labels.get("outcome", ""): item.last or 0.0 for item in found["online_events"]}
    position = readings.latest(found["online_position"])
    cells = (
        (
            "Log loss",
            fmt.number(loss.get("online"), 4),
            f"the stable version's is {fmt.number(loss.get('champion'), 4)}",
        ),
        (
            "Above the stable one",
            fmt.signed(excess.get("mean")),
            f"{fmt.signed(excess.get('lower'))} to {fmt.signed(excess.get('upper'))}, surely",
        ),
        ("Events learned", fmt.number(kept.get("learned")), f"{fmt.number(kept.get('skipped', 0.0))} skipped"),
        ("Learned up to", fmt.ago(position, view.now), "event time"),
        (
            "Learning rate",
            fmt.number(readings.latest(found["online_rate"])),
            f"raised {_count(found, 'online_drifts')}",
        ),
        ("Went back", _count(found, "online_rollbacks"), "to its last good state"),
    )
    stats([Stat(label, value, detail, detail=detail) for label, value, detail in cells], view.colors.accent)


def _federation(view: shell.View, found: Found) -> None:
    ended = {item.labels.get("outcome", ""): item.last or 0.0 for item in found["federated_rounds"]}
    cells = (
        ("Round", fmt.number(readings.latest(found["federated_round"])), f"{ended.get('repeated', 0.0):.0f} repeated"),
        ("Clients", fmt.number(readings.latest(found["federated_clients"])), "heard of lately"),
        ("Participation", fmt.percent(readings.latest(found["federated_participation"]), 0), "of those asked"),
    )
    stats([Stat(label, value, detail, detail=detail) for label, value, detail in cells], view.colors.accent)
    clients = sorted({item.labels.get("client", "") for item in found["federated_updates"]})

    def of(key: str, client: str, **labels: str) -> float | None:
        wanted = {"client": client, **labels}
        return readings.latest([item for item in found[key] if wanted.items() <= item.labels.items()])

    shell.rows(
        ("Client", "Used", "Rejected", "Missing", "Suspicion", "Drift", "Loss"),
        [
            (
                html.escape(client),
                *(_whole(of("federated_updates", client, outcome=one)) for one in ("used", "rejected", "missing")),
                *(fmt.number(of(f"federated_{one}", client), 3) for one in ("suspicion", "drift", "loss")),
            )
            for client in clients
        ],
        numeric=range(1, 7),
    )


def _servers(found: Found) -> None:
    servers = sorted({item.labels.get("server", "") for item in found["server_workers"]})

    def of(key: str, server: str) -> float | None:
        return readings.latest([item for item in found[key] if item.labels.get("server") == server])

    shell.rows(
        ("Server", "Live workers", "Updates", "Updates missed, mean", "Wait of a pull, mean"),
        [
            (
                html.escape(server),
                fmt.number(of("server_workers", server)),
                _whole(of("server_updates", server)),
                fmt.number(of("server_missed", server), 2),
                fmt.seconds(wait) if (wait := of("server_wait", server)) is not None else fmt.DASH,
            )
            for server in servers
        ],
        numeric=range(1, 5),
    )


def _whole(count: float | None) -> str:
    """What was counted in a span, which between two samples is a fraction."""
    return fmt.number(round(count) if count is not None and math.isfinite(count) else count)


def _count(found: Found, key: str) -> str:
    times = sum(item.last or 0.0 for item in found[key])
    return "once" if times == 1 else f"{times:.0f} times"
