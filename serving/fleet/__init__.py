"""A server of several processes: fronts that read HTTP, replicas that infer, a supervisor that keeps them alive."""

from __future__ import annotations

from serving.fleet.options import FleetOptions
from serving.fleet.supervisor import Fleet, run_fleet

__all__ = ["Fleet", "FleetOptions", "run_fleet"]
