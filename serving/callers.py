"""Who may ask: callers known by a bearer token, each with its models, priority and rate. Off without callers."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from observability import names
from observability.metrics import Metrics
from serving.errors import Forbidden, Limited, Unauthorized

# Each has series of its own; a gateway in front of the server is the place for more.
MAX_CALLERS = 1000
UNKNOWN = "unknown"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_SCHEME = b"bearer "


def token_digest(token: str) -> str:
    """What the settings keep of a token: the hexadecimal SHA-256 of it."""
    return hashlib.sha256(token.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """One caller. Give it a long random token: the settings hold only `token_sha256`, which is not salted."""

    name: str
    token_sha256: str
    # Rows a second in the long run; None is no limit.
    rows_per_second: float | None = None
    # Rows that may come at once after a pause; None is a second's worth. A larger request waits for a full bucket.
    burst_rows: float | None = None
    # Models that it may ask; empty means all.
    models: tuple[str, ...] = ()
    # The class of its requests, 1 goes first; a request may name a later one. None: what each names.
    priority: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name == UNKNOWN:
            raise ValueError(f"caller {self.name!r}: a name is 1 to 64 letters, digits, '.', '_', '-', not {UNKNOWN!r}")
        if not _DIGEST.fullmatch(self.token_sha256):
            raise ValueError(f"caller {self.name!r}: token_sha256 is not 64 hexadecimal digits in lower case")
        if self.rows_per_second is not None and not self.rows_per_second > 0:
            raise ValueError(f"caller {self.name!r}: rows_per_second is {self.rows_per_second}; give more than 0")
        if self.burst_rows is not None and not (self.burst_rows >= 1 and self.rows_per_second is not None):
            raise ValueError(
                f"caller {self.name!r}: burst_rows is {self.burst_rows}; give at least 1, and rows_per_second"
            )
        if self.priority is not None and self.priority < 1:
            raise ValueError(f"caller {self.name!r}: priority is {self.priority}; 1 is the first class")


class Bucket:
    """A token bucket: `rate` tokens a second up to `burst`. Time is a parameter, seconds of any steady clock."""

    __slots__ = ("_at", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float) -> None:
        self.rate = rate
        self.burst = burst
        self.tokens = burst
        self._at: float | None = None

    def resize(self, rate: float, burst: float, now: float) -> float:
        """Goes on with another rate and burst; gives the tokens that do not fit any more."""
        self._pass(now)
        self.rate, self.burst = rate, burst
        over = max(0.0, self.tokens - burst)
        self.tokens -= over
        return over

    def _pass(self, now: float) -> None:
        if self._at is not None and now > self._at:
            self.tokens = min(self.burst, self.tokens + (now - self._at) * self.rate)
        self._at = now if self._at is None else max(self._at, now)

    def take(self, amount: float, now: float) -> float:
        """Takes `amount` and gives 0, or takes nothing and gives the seconds until it can be had.

        What is more than the bucket holds is given when it is full, on credit: the long-run rate holds all the same.
        """
        self._pass(now)
        needed = min(amount, self.burst)
        # A few units in the last place are no reason to send anybody away.
        if self.tokens >= needed * (1.0 - 1e-12):
            self.tokens -= amount
            return 0.0
        return (needed - self.tokens) / self.rate if self.rate > 0 else 1.0


def burst_of(caller: Caller) -> float:
    """Rows that the caller may send at once after a pause."""
    return caller.burst_rows or max(1.0, caller.rows_per_second or 0.0)


class Account:
    """One caller at work: its bucket and its counts, which `Callers.observe` hands to the metrics."""

    __slots__ = (
        "admitted", "asked", "bucket", "caller", "digest", "forbidden", "limited", "models", "name", "priority", "rows",
    )  # fmt: skip

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.name = caller.name
        self.digest = bytes.fromhex(caller.token_sha256)
        self.models = frozenset(caller.models)
        self.priority = caller.priority
        rate = caller.rows_per_second
        self.bucket = None if rate is None else Bucket(rate, burst_of(caller))
        self.admitted = self.rows = self.forbidden = self.limited = 0
        # Rows admitted and refused since the last look of who divides the rate between replicas.
        self.asked = 0

    def take(self, rows: int, now: float) -> None:
        """Admits a request of `rows` rows. Raises Limited when it comes too soon."""
        if self.bucket is not None:
            self.asked += rows
            seconds = self.bucket.take(rows, now)
            if seconds > 0:
                self.limited += 1
                caller = self.caller
                raise Limited(
                    f"caller {self.name} may send {caller.rows_per_second:g} rows a second, {burst_of(caller):g} at "
                    f"once; these {rows} can be had in {seconds:.3f} s",
                    retry_after_seconds=seconds,
                )
        self.admitted += 1
        self.rows += rows


class Callers:
    """All callers. `known` is one hash and one look-up; nothing is done per request beyond plain integers."""

    def __init__(self, callers: Sequence[Caller], metrics: Metrics) -> None:
        """Raises ValueError for doubled names or tokens, and for more than `MAX_CALLERS`."""
        if len(callers) > MAX_CALLERS:
            raise ValueError(f"there are {len(callers)} callers, at most {MAX_CALLERS} can be had")
        self._accounts = {bytes.fromhex(caller.token_sha256): Account(caller) for caller in callers}
        if len(self._accounts) != len(callers) or len({caller.name for caller in callers}) != len(callers):
            raise ValueError("two callers have the same name or the same token")
        self._metrics = metrics
        self._unauthorized = 0

    def known(self, headers: Mapping[bytes, bytes], model: str) -> Account:
        """The caller whose token the request bears. Raises Unauthorized, and Forbidden when the model is not its."""
        value = headers.get(b"authorization")
        if value is None or value[:7].lower() != _SCHEME:
            self._unauthorized += 1
            raise Unauthorized("the request bears no token; send the header Authorization: Bearer TOKEN")
        digest = hashlib.sha256(value[7:].strip()).digest()
        account = self._accounts.get(digest)
        # The look-up is by a hash of the token, whose timing says nothing of any token; the last word has a comparison
        # of constant time.
        if account is None or not hmac.compare_digest(account.digest, digest):
            self._unauthorized += 1
            raise Unauthorized("the request's token is not known here")
        if account.models and model not in account.models:
            account.forbidden += 1
            raise Forbidden(f"caller {account.name} may not ask model {model!r}; it may ask {sorted(account.models)}")
        return account

    # --- one of several replicas -----------------------------------------------------------------------------------
    def demand(self) -> dict[str, int]:
        """Rows that each caller with a rate sent since the last look, admitted or not."""
        asked = {}
        for account in self._accounts.values():
            if account.bucket is not None:
                asked[account.name], account.asked = account.asked, 0
        return asked

    def share(self, shares: Mapping[str, Sequence[float]], now: float) -> dict[str, float]:
        """Limits callers to a share of their rate and burst, and adds rows to what they have at hand, by name.

        Rows below 0 stand for all that the share holds. Gives, by name, what was at hand and exceeds the share.
        """
        freed = {}
        for account in self._accounts.values():
            bucket, rate = account.bucket, account.caller.rows_per_second
            if bucket is None or rate is None or account.name not in shares:
                continue
            share, rows = shares[account.name]
            # At least one row: else a small burst could never be had from any replica.
            freed[account.name] = bucket.resize(share * rate, max(1.0, share * burst_of(account.caller)), now)
            bucket.tokens = min(bucket.burst, bucket.tokens + rows) if rows >= 0 else bucket.burst
        return freed

    def share_nothing(self) -> None:
        """Admits nobody who has a rate, until there are shares."""
        for account in self._accounts.values():
            if account.bucket is not None:
                account.bucket.rate = account.bucket.tokens = 0.0

    def observe(self) -> None:
        """Hands what was counted since the last time to the metrics."""
        requests, rows = self._metrics[names.CALLER_REQUESTS], self._metrics[names.CALLER_ROWS]
        if self._unauthorized:
            requests.labels(UNKNOWN, "unauthorized").inc(self._unauthorized)
            self._unauthorized = 0
        for account in self._accounts.values():
            for verdict in ("admitted", "forbidden", "limited"):
                count = getattr(account, verdict)
                if count:
                    requests.labels(account.name, verdict).inc(count)
                    setattr(account, verdict, 0)
            if account.rows:
                rows.labels(account.name).inc(account.rows)
                account.rows = 0
