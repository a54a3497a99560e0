"""Makes the lanes of all models: they share one device, one budget and one watchdog."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace

from serving.batcher import Batch, Budget
from serving.batching.device import Device
from serving.batching.execution import Runnable
from serving.batching.lane_policy import LanePolicy
from serving.batching.padding import Padded
from serving.batching.watchdog import Watchdog
from serving.engine import Executed, InferenceThread, Lane
from serving.telemetry.counting import Counting
from serving.telemetry.signals import Signals
from serving.versions.deployment import Deployment, Loaded


class Lanes:
    """`slots` batches run in threads at a time; `buckets` are the lengths that ragged inputs are padded to."""

    def __init__(
        self,
        policy: LanePolicy,
        total: Budget,
        signals: Signals,
        *,
        slots: int = 1,
        buckets: tuple[int, ...] = (),
        counting: Counting | None = None,
    ) -> None:
        self.policy = policy
        self._total = total
        self._signals = signals
        self._slots = slots
        self._buckets = buckets
        self._counting = counting
        self._device: Device | None = None
        self._watchdog = Watchdog(signals)

    def make(self, model: str, loaded: Loaded) -> Lane:
        """The lane of a version; on the event loop."""
        loop = asyncio.get_running_loop()
        if self._device is None:
            self._device = Device(loop, slots=self._slots, ageing=self.policy.ageing)
        policy, version = self.policy, self._signals.version(model, loaded.number)
        if loaded.model.manifest["format"] == "safetensors":
            # An architecture is Python of the user's and may block; other formats hold tensor operators only.
            policy = replace(policy, inline_seconds=0.0)
        elif policy.inline_seconds > 0:
            warmed = max(loaded.warm_up.seconds)
            policy = replace(policy, max_rows=max(policy.max_rows, min(warmed, policy.limit_rows)))
        loaded.model.signature = replace(loaded.model.signature, buckets=self._buckets)
        padded = Padded(loaded.model, policy.preferred_rows) if policy.pad else None

        runnable: Runnable = padded or loaded.model
        if self._counting is not None:
            runnable = self._counting.counted(model, loaded.number, runnable)

        def on_batch(batch: Batch, run: Executed) -> None:
            version.batch(batch.rows, run.ended - run.started, batch.reason)
            if padded is not None:
                version.padding(padded.added())

        return Lane(
            runnable,
            InferenceThread(f"{model}-{loaded.number}", loop.call_soon_threadsafe),
            loop,
            policy,
            warm_up=loaded.warm_up,
            device=self._device,
            total=self._total,
            on_batch=on_batch,
            on_shed=version.shed,
            on_late=version.late,
        )

    def look(self, deployments: Mapping[str, Deployment]) -> None:
        """Lets the watchdog look at every lane; about once a second."""
        self._watchdog.look(_all(deployments))


def _all(deployments: Mapping[str, Deployment]) -> Iterable[tuple[str, int, Lane]]:
    for model, deployment in deployments.items():
        for number, version in deployment.versions.items():
            yield model, number, version.lane
