"""Hours under load in minutes: `python benchmarks/soak.py [--minutes 60] [--rate 300]`.

A server with a canary, a shadow and a response cache gets a steady load (many inputs, some again and again) and a
change of weights each second. After a first fifth, in which caches fill, memory must stay flat to 1 %, and threads and
open files must not grow. Prints one line, or JSON; exits with 1 when something grew or a request failed.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.small_server import Load, Running, options, server

WARM_SHARE = 0.2


def main() -> None:
    """Runs and prints."""
    parser = options(__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=300.0, help="requests a second")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    with server(versions=3, cache={"mlp": {"bytes": 1_000_000, "seconds": 5.0}}) as running:
        result = soak(running, 60 * chosen.minutes, chosen.rate)
    print(json.dumps(result) if chosen.json else result)
    if result["failed"] or result["rss_growth"] > 0.01 or result["threads_growth"] > 0 or result["files_growth"] > 0:
        raise SystemExit(1)


def soak(running: Running, seconds: float, rate: float) -> dict[str, Any]:
    """Loads the server, and compares what it holds at the end with what it held after the first fifth."""
    running.post("shadow", {"version": 3, "fraction": 1.0})
    running.post("canary", {"version": 2, "weight": 0.5, "sticky": "user"})
    load = Load(running.port, 16, seconds, rate, units=5000, distinct=3000)
    thread = threading.Thread(target=lambda: asyncio.run(load.drive()))
    thread.start()
    begun, seen, turn = time.monotonic(), [], 0
    while thread.is_alive():
        time.sleep(min(1.0, seconds / 30))
        turn += 1
        running.post("canary", {"version": 2, "weight": turn % 10 / 10})
        running.get("/metrics")
        seen.append((time.monotonic() - begun, running.resources()))
    thread.join()
    settled = [resources for at, resources in seen if at > WARM_SHARE * seconds]
    edge = max(1, len(settled) // 5)
    early, late = settled[:edge], settled[-edge:]

    def middle(part: list[dict[str, int]], name: str) -> float:
        return statistics.median(resources[name] for resources in part)

    return {
        "seconds": round(seconds), "requests": sum(load.statuses.values()), "switches": turn,
        "failed": sum(load.statuses.values()) - load.statuses[200],
        "rss_kb": [middle(early, "rss_kb"), middle(late, "rss_kb")],
        "rss_growth": round(middle(late, "rss_kb") / middle(early, "rss_kb") - 1, 4),
        "threads_growth": middle(late, "threads") - middle(early, "threads"),
        "files_growth": middle(late, "files") - middle(early, "files"),
        "p50_ms": round(load.quantile(0.5), 2), "p99_ms": round(load.quantile(0.99), 2),
    }  # fmt: skip


if __name__ == "__main__":
    main()
