"""The response cache: a model of an LRU map with a TTL, one inference for equal requests, and nobody poisoned."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving import CachePolicy, InferenceClient, Input, Output, Service, Signature
from serving.batching.pending import State
from serving.cache import ENTRY_BYTES, WINDOW, Admission, Entries, ResponseCache, key_of
from serving.calls import Call
from serving.errors import Cancelled, Expired, ModelFailed, Refused, ServingError
from serving.router import Choice
from serving.v2 import parse

Start = Callable[..., Awaitable[Service]]
SIGNATURE = Signature((Input.of("x", "FP32"),), (Output("y"),))
DIGEST = "d" * 64


# --- the table ------------------------------------------------------------------------------------------------------
class ReferenceEntries:
    """The obvious way: a list in the order of use, searched from one end to the other."""

    def __init__(self, limit: int, seconds: float) -> None:
        self.limit, self.seconds = limit, seconds
        self.used: list[tuple[bytes, int, float]] = []  # key, size, expires; the least recently used first

    def get(self, key: bytes, now: float) -> int | None:
        found = next((entry for entry in self.used if entry[0] == key), None)
        if found is None:
            return None
        self.used.remove(found)
        if now >= found[2]:
            return None
        self.used.append(found)
        return found[1]

    def put(self, key: bytes, size: int, now: float) -> None:
        self.used = [entry for entry in self.used if entry[0] != key]
        if size > self.limit:
            return
        while sum(entry[1] for entry in self.used) + size > self.limit:
            self.used.pop(0)
        self.used.append((key, size, now + self.seconds))


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from("abcdef"), st.integers(0, 300), st.integers(0, 4)), max_size=60)
)
def test_entries_are_those_of_a_simple_least_recently_used_map(steps: list[tuple[bool, str, int, int]]) -> None:
    limit = 3 * ENTRY_BYTES
    entries, reference, now = Entries(limit, 10.0), ReferenceEntries(limit, 10.0), 0.0
    for write, name, floats, passed in steps:
        now += passed
        key = name.encode()
        if write:
            outputs = [np.full(floats, ord(name), np.float32)]
            entries.put(key, outputs, now)
            reference.put(key, ENTRY_BYTES + 4 * floats, now)
            outputs[0][:] = -1  # what is kept is a copy
        else:
            found, size = entries.get(key, now), reference.get(key, now)
            assert (found is None) == (size is None)
            if found is not None:
                assert ENTRY_BYTES + found[0].nbytes == size
                assert (found[0] == ord(name)).all()
        assert entries.bytes == sum(entry[1] for entry in reference.used) <= limit
        assert len(entries) == len(reference.used)


def test_the_hit_ratio_is_told_before_its_first_window_is_over() -> None:
    admission = Admission(0.05)
    assert admission.ratio == 0.0

    for hit in (False, True, True, True):
        admission.count(hit)

    assert admission.ratio == 0.75


def test_hits_that_are_too_rare_send_requests_past_the_cache_for_longer_and_longer() -> None:
    admission = Admission(0.05)
    opened = []
    for _ in range(20 * WINDOW):
        looked = admission.open()
        opened.append(looked)
        if looked:
            admission.count(False)
    by_window = [sum(opened[at : at + WINDOW]) / WINDOW for at in range(0, len(opened), WINDOW)]
    assert by_window == [1, 0, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]

    for number in range(WINDOW - sum(opened[-WINDOW:]) + 16 * WINDOW + WINDOW):
        if admission.open():
            admission.count(number % 2 == 0)
    assert admission.ratio == pytest.approx(0.5, abs=0.01)
    assert admission.open()
    never = Admission(0.0)
    for _ in range(3 * WINDOW):
        assert never.open()
        never.count(False)


# --- keys -----------------------------------------------------------------------------------------------------------
def key(body: bytes, header_length: int | None = None, signature: Signature = SIGNATURE, digest: str = DIGEST) -> bytes:
    request = parse(body, header_length)
    return key_of(digest, signature, request.values(signature), request.rows)


def json_body(shape: str, data: str, datatype: str = "FP32", name: str = "x") -> bytes:
    return f'{{"inputs":[{{"name":"{name}","shape":{shape},"datatype":"{datatype}","data":{data}}}]}}'.encode()


def binary_body(values: np.ndarray, datatype: str) -> tuple[bytes, int]:
    raw = values.tobytes()
    head = (
        f'{{"inputs":[{{"name":"x","shape":{list(values.shape)},"datatype":"{datatype}",'
        f'"parameters":{{"binary_data_size":{len(raw)}}}}}]}}'
    ).encode()
    return head + raw, len(head)


def test_the_same_values_have_one_key_however_they_are_sent() -> None:
    wanted = key(json_body("[2]", "[1.5,2.0]"))
    same = [
        key(json_body("[2,1]", "[1.5,2]")),
        key(json_body("[2,1]", "[[1.5],[2.0]]")),
        key(json_body("[2]", "[1.5,2.0]", "FP64")),
        key(*binary_body(np.array([1.5, 2.0], np.float32), "FP32")),
        key(*binary_body(np.array([1.5, 2.0], np.float64), "FP64")),
        key(*binary_body(np.array([[1.5], [2.0]], np.float16), "FP16")),
    ]
    other = [
        key(json_body("[2]", "[2.0,1.5]")),
        key(json_body("[3]", "[1.5,2.0,0.0]")),
        key(json_body("[1]", "[1.5]")),
        key(json_body("[2]", "[1.5,2.0]"), digest="e" * 64),
    ]
    assert same == [wanted] * len(same)
    assert len({wanted, *other}) == 1 + len(other)


def test_long_tensors_and_categories_have_one_key_too() -> None:
    long = np.arange(5000, dtype=np.float32)
    texts = Signature((Input.of("x", "BYTES", ["AA", "UA"]),), (Output("y"),))

    assert key(json_body("[5000]", str(long.tolist()))) == key(*binary_body(long, "FP32"))
    unknown = [key(json_body("[1]", f'["{text}"]', "BYTES"), signature=texts) for text in ("??", "!!", "UA")]
    assert unknown[0] == unknown[1] != unknown[2]


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=5))
def test_json_and_binary_agree_on_any_float(values: list[float]) -> None:
    array = np.array(values, np.float32)
    assert key(json_body(f"[{len(values)}]", str(values))) == key(*binary_body(array, "FP32"))


# --- one inference for equal requests -------------------------------------------------------------------------------
class FakeLane:
    """Keeps what is submitted until the test answers it."""

    def __init__(self) -> None:
        self.waiting: list[Call] = []
        self.refuses: ServingError | None = None

    def submit(self, call: Call, **_: Any) -> None:
        if self.refuses is not None:
            raise self.refuses
        call.lane = self
        self.waiting.append(call)


class Desk:
    """A cache before a fake lane; `ask` makes a request, `answer` ends what the lane has."""

    def __init__(self, **policy: Any) -> None:
        self.now = 0.0
        self.moved: list[Call] = []
        self.cache = ResponseCache(CachePolicy(**policy), self.moved.append, lambda: self.now)
        self.lane = FakeLane()
        self.version: Any = type("V", (), {})()
        self.version.lane = self.lane
        self.version.loaded = type("L", (), {"number": 1, "model": type("M", (), {"digest": DIGEST})})
        self.results: dict[Call, Any] = {}

    def ask(self, value: float = 1.0, deadline: float | None = None) -> Call:
        request = parse(json_body("[1]", f"[{value}]"))
        call = Call(request, "m", Choice(1, "stable", 1.0), SIGNATURE, self.now, deadline, self._finished)
        try:
            self.cache.submit(call, self.version)
        except ServingError as error:
            self._finished(call, error)
        return call

    def answer(self, result: Any = None) -> None:
        call = self.lane.waiting.pop(0)
        call.state = State.DONE
        call.finish([np.array([7.0], np.float32)] if result is None else result)

    def _finished(self, call: Call, result: Any) -> None:
        assert call not in self.results
        self.results[call] = result
        call.settle(result, self.now)
        if call.flight is not None:
            self.cache.settled(call, result)

    def outcomes(self, *calls: Call) -> list[str]:
        return [f"{call.outcome} {call.cache}" for call in calls]


def test_equal_requests_at_a_time_are_one_inference_and_later_ones_none() -> None:
    desk = Desk()
    first, second, other = desk.ask(1.0), desk.ask(1.0), desk.ask(2.0)
    assert len(desk.lane.waiting) == 2
    desk.answer()
    third = desk.ask(1.0)

    assert desk.outcomes(first, second, third) == ["ok miss", "ok shared", "ok hit"]
    assert other not in desk.results
    assert all(desk.results[call][0] == [7.0] for call in (first, second, third))
    assert desk.cache.counts == {(1, "miss"): 2, (1, "shared"): 1, (1, "hit"): 1}
    assert (first.attributes, second.attributes) == (None, '{"trimtab.cache":"hit"}')


def test_an_answer_ages() -> None:
    desk = Desk(seconds=5.0)
    desk.ask()
    desk.answer()
    desk.now = 4.9
    assert desk.ask().cache == "hit"
    desk.now = 5.0
    assert desk.ask().cache == "miss"


@pytest.mark.parametrize("end", [Cancelled("gone"), Expired("late")])
def test_a_follower_takes_over_from_a_leader_that_gave_up(end: ServingError) -> None:
    desk = Desk()
    leader, second, third = desk.ask(), desk.ask(), desk.ask()
    desk.answer(end)
    assert desk.lane.waiting == [second]
    desk.answer()

    assert desk.outcomes(leader, second, third) == [f"{end.outcome} miss", "ok miss", "ok shared"]
    assert desk.ask().cache == "hit"


def test_a_follower_that_cannot_take_over_leaves_it_to_the_next() -> None:
    desk = Desk()
    leader, second, third = desk.ask(), desk.ask(), desk.ask()
    desk.lane.refuses = Refused("full", 1.0)
    desk.answer(Cancelled("gone"))

    assert desk.outcomes(leader, second, third) == ["cancelled miss", "rejected miss", "rejected miss"]
    desk.lane.refuses = None
    assert desk.ask().cache == "miss"
    assert len(desk.lane.waiting) == 1


def test_a_failed_leader_fails_alone_and_nothing_is_kept() -> None:
    desk = Desk()
    leader, second, third = desk.ask(), desk.ask(), desk.ask()
    desk.answer(ModelFailed("no"))
    assert desk.lane.waiting == [second, third]
    desk.answer()
    desk.answer(ModelFailed("again"))

    assert desk.outcomes(leader, second, third) == ["model_error miss", "ok miss", "model_error miss"]
    assert desk.ask().cache == "miss"


def test_followers_of_a_leader_whose_version_was_rolled_back_move_on_and_its_answer_is_not_kept() -> None:
    desk = Desk()
    leader, second = desk.ask(), desk.ask()
    leader.choice = Choice(2, "stable", 1.0)  # what a rollback does to a waiting call
    desk.answer()

    assert desk.outcomes(leader) == ["ok miss"]
    assert desk.moved == [second]
    assert desk.ask().cache == "miss"


def test_a_follower_that_goes_away_leaves_the_others_alone() -> None:
    desk = Desk()
    leader, second, third = desk.ask(), desk.ask(), desk.ask()
    second.lane.cancel(second)
    second.lane.cancel(second)
    desk.answer()

    assert desk.outcomes(leader, second, third) == ["ok miss", "cancelled shared", "ok shared"]


async def test_a_follower_waits_no_longer_than_its_own_deadline() -> None:
    desk = Desk()
    leader, hasty, patient = desk.ask(), desk.ask(deadline=0.01), desk.ask(deadline=30.0)
    while hasty not in desk.results:
        await asyncio.sleep(0.005)
    desk.answer()

    assert desk.outcomes(leader, hasty, patient) == ["ok miss", "expired shared", "ok shared"]


@given(
    st.lists(
        st.tuples(st.sampled_from(["ask", "ok", "cancel leader", "fail", "cancel follower"]), st.integers(0, 2)),
        max_size=50,
    )
)
def test_every_request_ends_exactly_once_whatever_happens(steps: list[tuple[str, int]]) -> None:
    desk, asked = Desk(), []
    for step, value in steps:
        if step == "ask":
            asked.append(desk.ask(float(value)))
        elif step == "cancel follower":
            for call in [c for c in asked if c not in desk.results and c not in desk.lane.waiting][:1]:
                call.lane.cancel(call)
        elif desk.lane.waiting:
            desk.answer({"ok": None, "cancel leader": Cancelled("gone"), "fail": ModelFailed("no")}[step])
        waiting = {bytes(call.values[0]) for call in desk.lane.waiting}
        assert all(bytes(call.values[0]) in waiting for call in asked if call not in desk.results)
    while desk.lane.waiting:
        desk.answer()
    assert set(desk.results) == set(asked)
    assert not desk.cache._flights


# --- the service ----------------------------------------------------------------------------------------------------
async def test_a_service_answers_equal_requests_once_and_counts_and_records_each(start: Start) -> None:
    service = await start(cache={"fares": CachePolicy()})
    async with InferenceClient(f"http://127.0.0.1:{service.port}") as client:
        inputs = {"amount": [math.e], "carrier": ["UA"]}
        answers = [await client.infer("fares", inputs) for _ in range(3)]
        _, deployment = next(iter(service.deployments.items()))
        deployment.observe()

    assert [answer.outputs["score"][0] for answer in answers] == pytest.approx([21.0] * 3)
    read = service.metrics.registry.get_sample_value
    assert read("response_cache_requests_total", {"model": "fares", "version": "1", "result": "hit"}) == 2
    assert read("response_cache_requests_total", {"model": "fares", "version": "1", "result": "miss"}) == 1
    assert read("inference_requests_total", {"model": "fares", "version": "1", "outcome": "ok"}) == 3
    assert read("inference_rows_total", {"model": "fares", "version": "1"}) == 1
    assert read("response_cache_entries", {"model": "fares"}) == 1


async def test_a_switch_of_version_never_gives_the_old_versions_answer(start: Start) -> None:
    import httpx

    service = await start(cache={"*": CachePolicy()})
    body = b'{"inputs":[{"name":"amount","shape":[1],"datatype":"FP32","data":[2.718281828]},' + (
        b'{"name":"carrier","shape":[1],"datatype":"BYTES","data":["AA"]}]}'
    )
    seen = []
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as http:
        for version in (None, 2, 3, 2):
            if version is not None:
                switched = await http.post("/api/v1/models/fares/switch", json={"version": version}, timeout=60)
                assert switched.status_code == 200, switched.text
            for _ in range(2):
                answer = await http.post("/v2/models/fares/infer", content=body)
                value = answer.json()["outputs"][0]["data"][0]
                seen.append((answer.headers["x-trimtab-cache"], round(value), answer.headers["x-trimtab-version"]))

    assert seen == [
        ("miss", 11, "1"), ("hit", 11, "1"), ("miss", 12, "2"), ("hit", 12, "2"),
        ("miss", 13, "3"), ("hit", 13, "3"), ("hit", 12, "2"), ("hit", 12, "2"),
    ]  # fmt: skip


def test_a_policy_that_cannot_work_is_refused(tmp_path: Path) -> None:
    for wrong in ({"bytes": 0}, {"seconds": 0.0}, {"min_hit_ratio": 1.0}):
        with pytest.raises(ValueError, match="cache: bytes is"):
            CachePolicy(**wrong)
