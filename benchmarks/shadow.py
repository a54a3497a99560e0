"""What a shadow on the same device costs the callers: `python benchmarks/shadow.py [--seconds 4] [--rounds 5]`.

One server; in turns it has no shadow, one of next to no request, and one of all, at four loads: 64 clients that send
one request after another (the server is saturated), 2000 and 500 requests a second whatever happens, and a lone client.
Ratios are of neighbouring turns; the goal is a p99 of at most 1.1. `p99_way` is what a shadow of next to no request
makes of it alone, `p99_copies` the rest. Beside it: how many of the callers' requests were compared. The shadow's
process is started before; `cpu_ratio` is the server's alone. Requests are of the kind that takes the shortcut, with
`--general` of one that goes the general way.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.small_server import Load, median_ratio, options, server

LOADS = {"64 clients": (64, 0.0), "2000 a second": (64, 2000.0), "500 a second": (32, 500.0), "a lone client": (1, 0.0)}


def main() -> None:
    """Runs the loads and prints a line for each."""
    parser = options(__doc__)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shadows", type=int, default=1)
    parser.add_argument("--hidden", type=int, default=256, help="width of the model")
    parser.add_argument("--only", default="")
    parser.add_argument("--limits", type=json.loads, default={}, help="fields of ShadowLimits, as JSON")
    parser.add_argument("--general", action="store_true", help="requests with a parameter")
    parser.add_argument("--collector", default=None, help="where events go; none by default")
    parser.add_argument("--json", action="store_true")
    chosen = parser.parse_args()
    results, plain = {}, not chosen.general
    told = {} if chosen.collector is None else {"collector_url": chosen.collector}
    with server(versions=1 + chosen.shadows, hidden=chosen.hidden, shadow=chosen.limits, **told) as running:
        Load(running.port, 16, 2.0, plain=plain).run()
        for shadow in range(chosen.shadows):
            running.post("shadow", {"version": 2 + shadow, "fraction": 1.0})
        Load(running.port, 16, 8.0, 200.0, plain=plain).run()
        for name, (connections, rate) in LOADS.items():
            if chosen.only and chosen.only not in name:
                continue
            turns, ways = [], []
            before = {what: running.metric("shadow_requests_total", outcome=what) for what in OUTCOMES}
            mirrored = 0
            for _ in range(chosen.rounds):
                pair = []
                for fraction in (0.0, 1e-9, 1.0):
                    for shadow in range(chosen.shadows):
                        running.post("shadow", {"version": 2 + shadow, "fraction": fraction})
                    time.sleep(0.3)
                    worked = running.cpu_seconds()
                    load = Load(running.port, connections, chosen.seconds, rate, plain=plain).run()
                    worked = (running.cpu_seconds() - worked) / len(load.latencies)
                    assert set(load.statuses) <= {200, 0}, load.statuses
                    pair.append((load.quantile(0.5), load.quantile(0.99), len(load.latencies) / chosen.seconds, worked))
                mirrored += len(load.latencies) * chosen.shadows
                time.sleep(0.3)
                turns.append((pair[0], pair[2]))
                ways.append((pair[1][1], pair[0][1], pair[2][1]))
            after = {what: running.metric("shadow_requests_total", outcome=what) - before[what] for what in OUTCOMES}
            p50, p99, rate_ratio, cpu = (median_ratio([(on[k], off[k]) for off, on in turns]) for k in range(4))
            offs = [statistics.median(off[k] for off, _ in turns) for k in (1, 0)]
            results[name] = {
                "p99_ratio": round(p99, 3), "p50_ratio": round(p50, 3), "rate_ratio": round(rate_ratio, 3),
                "p99_way": round(median_ratio([(way, off) for way, off, _ in ways]), 3),
                "p99_copies": round(median_ratio([(on, way) for way, _, on in ways]), 3),
                "p99_ratios": [round(on[1] / off[1], 2) for off, on in turns],
                "compared": round(after["compared"] / max(1, mirrored), 3), "p99_off_ms": round(offs[0], 3),
                "p50_off_ms": round(offs[1], 3), "failed": after["failed"], "cpu_ratio": round(cpu, 3),
            }  # fmt: skip
            print(name, results[name], flush=True, file=sys.stderr if chosen.json else sys.stdout)
    if chosen.json:
        print(json.dumps(results))


OUTCOMES = ("compared", "dropped", "failed", "incomparable")

if __name__ == "__main__":
    main()
