"""What carries an action out: the seam `Hook`, what it is told, and the callable among the hooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


class HookError(RuntimeError):
    """A hook failed for good; `result` is kept in the journal."""

    def __init__(self, message: str, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = dict(result or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a hook is told. `key` is the same for every try of one action."""

    key: str
    action: str
    model: str
    release: str = ""
    reason: str = ""
    alert: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    actor: str = ""

    def to_json(self) -> dict[str, Any]:
        """The body of a hook's request."""
        return {
            "key": self.key,
            "action": self.action,
            "model": self.model,
            "release": self.release,
            "reason": self.reason,
            "alert": self.alert,
            "labels": dict(self.labels),
            "evidence": dict(self.evidence),
            "actor": self.actor,
        }


class Hook(Protocol):
    """Carries an action out. A call with a key that was carried out before must change nothing."""

    def run(self, call: Call) -> Mapping[str, Any]:
        """Blocks until done; the answer is kept in the journal. Raises HookError."""

    def close(self) -> None:
        """Stop what runs, for shutdown."""


@dataclass(frozen=True, slots=True)
class FunctionHook:
    """A callable of this process as a hook."""

    function: Callable[[Call], Mapping[str, Any] | None]

    def run(self, call: Call) -> Mapping[str, Any]:
        return self.function(call) or {}

    def close(self) -> None:
        """Nothing to stop: the function owns what it does."""
