"""Whether the server can take requests, and why not."""

from __future__ import annotations

from collections.abc import Mapping

from serving.versions.deployment import Deployment


class Health:
    """`starting` until every model is warm, `ready`, then `draining` for good."""

    def __init__(self, deployments: Mapping[str, Deployment]) -> None:
        self._deployments = deployments
        self.state = "starting"

    def away(self) -> str | None:
        """Why the server answers no request, whatever models it has; None when it does."""
        return None if self.state == "ready" else f"the server is {self.state}"

    def unready(self) -> str | None:
        """Why the server is not ready; None when it is."""
        if self.state != "ready":
            return self.away()
        # One whose policy could not be restored has trouble in place of a stable version.
        waiting = [
            name
            for name, d in self._deployments.items()
            if (d.router.policy.stable is not None or d.trouble) and not d.ready
        ]
        return f"not loaded: {', '.join(waiting)}" if waiting else None
