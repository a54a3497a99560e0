"""What carries an action out: the seam `Hook`, what it is told, and the callable among the hooks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable


class HookError(RuntimeError):
    """A hook failed for good; `result` is kept in the journal."""

    def __init__(self, message: str, result: Mapping[str, Any] | None = None) -> None:
        super().__init__(message)
        self.result = dict(result or {})


class HookAway(HookError):
    """What the hook needs could not be reached, or said to come later: the same call is worth another try."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What a hook is told. `key` is the same for every try of one action, and so is everything else but `token`."""

    key: str
    action: str
    model: str
    release: str = ""
    reason: str = ""
    alert: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    actor: str = ""
    asked_at: float = 0.0
    """When the action was asked for (unix seconds)."""
    target: Mapping[str, Any] = field(default_factory=dict)
    """What `prepare` resolved at the first try; it stands for every later one."""
    token: int = 0
    """Grows with each process that takes the action up: a receiver may refuse one smaller than it has seen."""

    def to_json(self) -> dict[str, Any]:
        """The body of a hook's request; the same for every try."""
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What a hook finds before it acts; `before` and `target` are JSON and go to the journal."""

    before: Mapping[str, Any] = field(default_factory=dict)
    target: Mapping[str, Any] = field(default_factory=dict)
    """What will be in force afterwards, such as the last good version and its digest."""
    done: str = ""
    """The proof that the effect of this very call is there already; "" when it is not."""
    problem: str = ""
    """Why it must not be done: the target is gone, or does not answer."""
    person: str = ""
    """A person's decision that it would override."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmed:
    """What a hook finds after it acted."""

    after: Mapping[str, Any] = field(default_factory=dict)
    problem: str = ""
    """Why it does not count as done: what is in force is not the target, or it does not answer."""


class Hook(Protocol):
    """Carries an action out. A call with a key that was carried out before must change nothing."""

    def run(self, call: Call) -> Mapping[str, Any]:
        """Blocks until done; the answer is kept in the journal. Raises HookError."""

    def close(self) -> None:
        """Stop what runs, for shutdown."""


@runtime_checkable
class VerifyingHook(Protocol):
    """A hook that looks before and after it acts, and can tell whether its effect is there."""

    def prepare(self, call: Call) -> Prepared:
        """What is in force, what will be, and whether that may be done or is done. Raises HookError."""

    def run(self, call: Call) -> Mapping[str, Any]:
        """Brings `call.target` into force. Raises HookError."""

    def confirm(self, call: Call) -> Confirmed:
        """Whether `call.target` is in force and answers. Raises HookError."""

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


def function_of(entry: str) -> Callable[[Call], Mapping[str, Any] | None]:
    """The callable of `module:function`; dots behind the colon lead to attributes. Raises ValueError."""
    module, colon, path = entry.partition(":")
    if not module or not colon or not path:
        raise ValueError(f"a function is named module:function, got {entry!r}")
    try:
        found: Any = importlib.import_module(module)
        for name in path.split("."):
            found = getattr(found, name)
    except ImportError as error:
        raise ValueError(f"{entry}: the module {module!r} cannot be imported: {error}") from error
    except AttributeError as error:
        raise ValueError(f"{entry}: {error}") from error
    if not callable(found):
        raise ValueError(f"{entry} is {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]
