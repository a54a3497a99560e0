"""The targets as `/api/v1/targets` shows them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from collectors.scrape import Scraper
from collectors.scraping.target import Target
from observability.durations import duration_text

NEVER = "0001-01-01T00:00:00Z"


def targets_json(scraper: Scraper) -> dict[str, Any]:
    """The `data` of `/api/v1/targets`, as Prometheus has it."""
    active: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    counts: dict[str, int] = {}
    for pool in scraper.pools:
        active += [_active(scraper, target) for target in list(pool.targets.active.values())]
        gone = list(pool.targets.dropped)
        shown = gone[: pool.config.keep_dropped_targets or None]
        dropped += [{"discoveredLabels": dict(item.discovered), "scrapePool": pool.config.job} for item in shown]
        counts[pool.config.job] = counts.get(pool.config.job, 0) + len(gone)
    return {"activeTargets": active, "droppedTargets": dropped, "droppedTargetCounts": counts}


def _active(scraper: Scraper, target: Target) -> dict[str, Any]:
    result = scraper.results.get(target.name)
    return {
        "discoveredLabels": dict(target.discovered),
        "labels": dict(target.series_labels),
        "scrapePool": target.config.job,
        "scrapeUrl": target.url,
        "globalUrl": target.url,
        "lastError": (result.error or "") if result else "",
        "lastScrape": _rfc3339(result.at) if result else NEVER,
        "lastScrapeDuration": result.duration_seconds if result else 0.0,
        "health": "unknown" if result is None else "up" if result.up else "down",
        "scrapeInterval": duration_text(target.interval_ms),
        "scrapeTimeout": duration_text(target.timeout_ms),
    }


def _rfc3339(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")
