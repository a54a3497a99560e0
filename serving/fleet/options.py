"""How a server of several processes behaves; the numbers are its settings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetOptions:
    """Several front processes and replicas behind one port. Times are seconds. Raises ValueError for what cannot be."""

    # Whole inference cores, each with its models, queues and batches.
    replicas: int = 1
    # Processes that read HTTP for the replicas; 0 is one process that does all, or one front for several replicas.
    fronts: int = 0
    # Replicas that must have a model loaded before the server calls itself ready.
    min_ready: int = 1
    # An inference request whose replica was lost is asked once of another one; otherwise it is answered 503.
    retry_lost: bool = True
    # Fronts ask each replica for a sign of life this often; one that is silent for `ping_limit` gets nothing more.
    ping_interval: float = 1.0
    ping_limit: float = 5.0
    # A replica that is silent to the supervisor for this long is killed and started again.
    hang_limit: float = 30.0
    # Largest share of the replicas that may be out of the traffic because their answers fail.
    max_ejected: float = 0.5
    # What a front may have asked of one replica without an answer.
    credit_requests: int = 4096
    credit_bytes: int = 64 * 1024 * 1024

    def __post_init__(self) -> None:
        if self.replicas < 1 or self.fronts < 0:
            raise ValueError(f"replicas is {self.replicas}, fronts {self.fronts}: at least 1, and not negative")
        if not 1 <= self.min_ready <= self.replicas:
            raise ValueError(f"min_ready is {self.min_ready}: at least 1, at most the {self.replicas} replicas")
        if not 0 < self.ping_interval <= self.ping_limit <= self.hang_limit:
            raise ValueError(
                f"ping_interval {self.ping_interval:g}, ping_limit {self.ping_limit:g} and hang_limit "
                f"{self.hang_limit:g} must be above 0 and in this order"
            )
        if not 0.0 <= self.max_ejected < 1.0:
            raise ValueError(f"max_ejected is {self.max_ejected:g}: a share from 0 up to, not with, 1")
        if self.credit_requests < 1 or self.credit_bytes < 1:
            raise ValueError(
                f"credit_requests is {self.credit_requests}, credit_bytes {self.credit_bytes}: at least 1 each"
            )

    @property
    def several(self) -> bool:
        """Whether it takes more than this one process."""
        return self.replicas > 1 or self.fronts > 0

    @property
    def front_count(self) -> int:
        """Front processes to start when it takes more than one process."""
        return max(1, self.fronts)
