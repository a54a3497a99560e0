"""Callers: tokens, models and rates; nothing of it without callers."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability import names
from observability.metrics import Metrics
from serving import Caller, Service, token_digest
from serving.callers import MAX_CALLERS, Bucket, Callers
from serving.errors import Forbidden, Limited, Unauthorized

Start = Callable[..., Awaitable[Service]]
WEB = Caller(name="web", token_sha256=token_digest("web-token"), rows_per_second=10, burst_rows=20)
JOBS = Caller(name="jobs", token_sha256=token_digest("jobs-token"), models=("fares",), priority=3)


@given(
    rate=st.floats(0.1, 1000), burst=st.floats(1, 1000),
    steps=st.lists(st.tuples(st.floats(0, 10), st.integers(1, 500)), min_size=1, max_size=60),
)  # fmt: skip
def test_a_bucket_gives_no_more_than_its_rate_and_burst(
    rate: float, burst: float, steps: list[tuple[float, int]]
) -> None:
    """Whatever comes: up to any moment, burst + rate × time and one request on credit; waiting as told is enough."""
    bucket, now, given_out, largest = Bucket(rate, burst), 0.0, 0, 0
    for pause, amount in steps:
        now += pause
        seconds = bucket.take(amount, now)
        if seconds > 0:
            # Not a moment too late, and not too early: just before, it is still refused.
            assert bucket.take(amount, now + seconds * 0.999) > 0 or seconds < 1e-6
            now += seconds * 1.000001 + 1e-9
            assert bucket.take(amount, now) == 0
        given_out += amount
        largest = max(largest, amount)
        assert given_out <= (burst + rate * now + largest) * (1 + 1e-6)


def test_a_bucket_refills_to_its_burst_and_no_further() -> None:
    bucket = Bucket(2.0, 10.0)
    assert bucket.take(10, 5.0) == 0
    assert bucket.take(1, 5.0) == pytest.approx(0.5)
    assert bucket.take(1, 5.5) == 0
    assert bucket.take(10, 1000.0) == 0
    assert bucket.take(1, 1000.0) > 0
    # More than it holds is had when it is full, on credit.
    assert bucket.take(30, 1005.0) == 0
    assert bucket.take(1, 1005.0) == pytest.approx(10.5)
    # A clock that steps back gives nothing.
    assert bucket.take(1, 0.0) > 0


def test_a_caller_is_known_by_its_token_and_held_to_its_models_and_rate() -> None:
    metrics = Metrics()
    callers = Callers((WEB, JOBS), metrics)

    def bearer(token: str) -> dict[bytes, bytes]:
        return {b"authorization": f"Bearer {token}".encode()}

    web = callers.known(bearer("web-token"), "any")
    web.take(20, 0.0)
    with pytest.raises(Limited, match="10 rows a second") as limited:
        web.take(5, 0.0)
    assert limited.value.retry_after_seconds == pytest.approx(0.5)
    web.take(5, 0.5)
    jobs = callers.known({b"authorization": b"bearer  jobs-token "}, "fares")
    assert (jobs.name, jobs.priority) == ("jobs", 3)
    for _ in range(100):
        jobs.take(1000, 0.0)
    with pytest.raises(Forbidden, match="'gate'"):
        callers.known(bearer("jobs-token"), "gate")
    for headers in ({}, bearer(""), bearer("web-token2"), {b"authorization": b"Basic d2Vi"}, bearer("x" * 100_000)):
        with pytest.raises(Unauthorized):
            callers.known(headers, "fares")
    callers.observe()
    callers.observe()

    def count(caller: str, verdict: str) -> float | None:
        return metrics.registry.get_sample_value(names.CALLER_REQUESTS.name, {"caller": caller, "verdict": verdict})

    assert [count("web", "admitted"), count("web", "limited"), count("web", "forbidden")] == [2, 1, None]
    assert [count("jobs", "admitted"), count("jobs", "forbidden")] == [100, 1]
    assert count("unknown", "unauthorized") == 5
    assert metrics.registry.get_sample_value(names.CALLER_ROWS.name, {"caller": "jobs"}) == 100_000


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": "unknown"}, "unknown"), ({"name": "a b"}, "name"), ({"token_sha256": "abc"}, "64 hexadecimal"),
        ({"token_sha256": "A" * 64}, "lower case"), ({"rows_per_second": 0.0}, "more than 0"),
        ({"rows_per_second": float("nan")}, "more than 0"), ({"burst_rows": 5.0}, "rows_per_second"),
        ({"rows_per_second": 1.0, "burst_rows": 0.5}, "at least 1"), ({"priority": 0}, "priority"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_named(fields: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Caller(**({"name": "a", "token_sha256": "0" * 64} | fields))  # type: ignore[arg-type]


def test_the_number_of_callers_is_bounded_and_none_comes_twice() -> None:
    with pytest.raises(ValueError, match="same name or the same token"):
        Callers((WEB, WEB), Metrics())
    many = [Caller(name=f"c{n}", token_sha256=token_digest(str(n))) for n in range(MAX_CALLERS + 1)]
    with pytest.raises(ValueError, match="at most"):
        Callers(many, Metrics())
    assert token_digest("a") == hashlib.sha256(b"a").hexdigest()


@pytest.mark.slow
async def test_a_server_with_callers_asks_for_tokens(start: Start) -> None:
    service = await start(callers=(WEB, JOBS))
    body = {
        "inputs": [
            {"name": "amount", "datatype": "FP32", "shape": [15], "data": [1.0] * 15},
            {"name": "carrier", "datatype": "BYTES", "shape": [15], "data": ["AA"] * 15},
        ]
    }
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}") as client:

        async def ask(token: str | None, model: str = "fares") -> httpx.Response:
            headers = {} if token is None else {"authorization": f"Bearer {token}"}
            return await client.post(f"/v2/models/{model}/infer", json=body, headers=headers)

        for token in (None, "wrong"):
            refused = await ask(token)
            assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
            assert "token" in refused.json()["error"]
        assert (await ask("web-token")).status_code == 200
        limited = await ask("web-token")
        assert limited.status_code == 429
        assert int(limited.headers["retry-after"]) >= 1
        assert "10 rows a second" in limited.json()["error"]
        for _ in range(3):
            assert (await ask("jobs-token")).status_code == 200
        # The caller's class holds; a request may name a later one only.
        lane, seen = service.deployments["fares"].versions[1].lane, []
        submit = lane.submit
        lane.submit = lambda pending, **options: (seen.append(pending.priority), submit(pending, **options))[1]  # type: ignore[method-assign]
        for named in (None, 1, 7):
            parameters = {} if named is None else {"parameters": {"priority": named}}
            token = {"authorization": "Bearer jobs-token"}
            assert (await client.post("/v2/models/fares/infer", json=body | parameters, headers=token)).is_success
        assert seen == [3, 3, 7]
        # A token is no secret key to what is not served, and metadata needs none.
        assert (await ask("jobs-token", "nowhere")).status_code == 404
        assert (await client.get("/v2/models/fares")).status_code == 200
        page = (await client.get("/metrics")).text
    assert 'inference_caller_requests_total{caller="web",verdict="limited"} 1.0' in page
    assert 'inference_caller_requests_total{caller="unknown",verdict="unauthorized"} 2.0' in page
    assert 'inference_caller_rows_total{caller="jobs"} 90.0' in page
