"""What follows when a guard speaks up: a choice for each guard, with a cool-down and bounds."""

from __future__ import annotations

from dataclasses import dataclass, fields

from training.guards.finding import Action, Finding, Guard

_ALLOWED: dict[str, tuple[Action, ...]] = {
    "nonfinite": ("lower_rate", "rewind", "restart", "stop"),
    "gradient_explosion": ("report", "skip", "lower_rate", "rewind", "restart", "stop"),
    "activations": ("report", "lower_rate", "rewind", "restart", "stop"),
    "plateau": ("report", "lower_rate", "stop"),
    "starvation": ("report", "restart", "stop"),
    "leak": ("report", "restart", "stop"),
    "divergence": ("report", "rewind", "restart", "stop"),
    "straggler": ("report", "restart", "stop"),
    "device": ("report", "restart", "stop"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardPolicy:
    """What follows each guard's finding, beside a count, a warning and a line in the run's record.

    `report` is nothing more. `skip` takes no step on such batches, decided on the device. `lower_rate` multiplies the
    learning rate by `lowered`, at most `max_lowered` times, then stops. `rewind` goes back to the newest checkpoint
    from before the trouble and on past the batches that led to it. `restart` ends the process with `RestartRun`, so
    that the supervisor begins an attempt from the newest checkpoint. `stop` ends the run with the reason.
    """

    nonfinite: Action = "stop"
    """After `max_nonfinite` steps in a row whose loss, outputs or gradients were not finite. Such steps are always
    skipped on the device."""
    gradient_explosion: Action = "report"
    activations: Action = "report"
    """Units that are dead, or values that grow out of all proportion, in a layer."""
    plateau: Action = "report"
    starvation: Action = "report"
    leak: Action = "report"
    divergence: Action = "rewind"
    """Replicas whose parameters are not equal any more, bit by bit; without a checkpoint from before, the run stops."""
    straggler: Action = "report"
    """A rank that is slower than the others; judged by who supervises the ranks."""
    device: Action = "report"
    """A GPU that is throttled by heat, or tells of memory errors or an Xid."""
    cool_down: int = 200
    """Steps after an action in which the same guard is only counted."""
    lowered: float = 0.5
    max_lowered: int = 4
    activations_every: int = 100
    """Steps between looks at the activations; 0 never looks."""
    checksums_every: int = 200
    """Steps between comparisons of the replicas' parameters; 0 never compares."""

    def __post_init__(self) -> None:
        for name, allowed in _ALLOWED.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"guards.{name} is {getattr(self, name)!r}: one of {', '.join(allowed)}")
        if not 0 < self.lowered < 1:
            raise ValueError(f"guards.lowered is {self.lowered}: it must be in (0, 1)")
        for name in ("cool_down", "max_lowered", "activations_every", "checksums_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"guards.{name} is {getattr(self, name)}: it must not be negative")

    def action(self, guard: Guard) -> Action:
        """What follows a finding of that guard. KeyError for one that is not a training loop's."""
        if guard not in _ALLOWED:
            raise KeyError(guard)
        chosen: Action = getattr(self, guard)
        return chosen


@dataclass(frozen=True, slots=True)
class Standing:
    """What was done in a run so far: the step of each guard's last action, and how often the rate was lowered."""

    acted: tuple[tuple[Guard, int], ...] = ()
    lowered: int = 0


@dataclass(frozen=True, slots=True)
class Response:
    """What to do about a finding, why, and the standing to go on with."""

    action: Action
    reason: str
    finding: Finding
    standing: Standing


def respond(policy: GuardPolicy, standing: Standing, finding: Finding, step: int, action: Action) -> Response:
    """What follows a finding at `step` whose policy is `action`: less within the cool-down, more beyond the bounds."""
    last = dict(standing.acted).get(finding.guard)
    if action == "report" or action == "skip":
        return Response(action, finding.reason, finding, standing)
    # Rewinds have a bound of their own, and go back before the step at which they were decided on.
    if last is not None and step - last < policy.cool_down and action not in ("stop", "rewind"):
        return Response("report", f"{finding.reason}; acted upon at step {last} already", finding, standing)
    acted = tuple(sorted((dict(standing.acted) | {finding.guard: step}).items()))
    if action == "lower_rate" and standing.lowered >= policy.max_lowered:
        reason = f"{finding.reason}; the rate was lowered {standing.lowered} times already"
        return Response("stop", reason, finding, Standing(acted, standing.lowered))
    lowered = standing.lowered + (action == "lower_rate")
    return Response(action, finding.reason, finding, Standing(acted, lowered))


def from_json(said: dict[str, object]) -> GuardPolicy:
    """The policy of a JSON object. ValueError names what is unknown or wrong."""
    known = {one.name for one in fields(GuardPolicy)}
    if unknown := sorted(set(said) - known):
        raise ValueError(f"guards has no {', '.join(unknown)}; there are: {', '.join(sorted(known))}")
    return GuardPolicy(**said)  # type: ignore[arg-type]
