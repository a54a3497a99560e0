"""Posted profiles: measured like the rows that they are of, once and durably; what does not fit is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from collectors.database import PROFILES
from collectors.profiles import EVENTS, ProfileBatch, Source
from collectors.windows import Slicing, Windows, WindowSettings
from observability import names
from observability.events import event_batch, to_ipc
from observability.profile import Profile

T0 = 1_363_000_000.0
Events = Callable[..., pa.RecordBatch]


def table(batch: pa.RecordBatch) -> pa.Table:
    return pa.Table.from_batches([batch])


def without_features(batch: pa.RecordBatch) -> pa.RecordBatch:
    return batch.drop_columns([name for name in batch.schema.names if name.startswith("feature.")])


def declared(reference: Profile, source: Any) -> bytes:
    return json.dumps({**json.loads(reference.to_json()), "from_profiles": source}).encode()


def post(
    collector: Any, profile: Profile | bytes, start: Any = T0, end: Any = T0 + 5, batch_id: str | None = None
) -> Any:
    headers = {"X-Profile-Start": str(start), "X-Profile-End": str(end)} | (
        {"X-Batch-Id": batch_id} if batch_id else {}
    )
    body = profile if isinstance(profile, bytes) else profile.to_json()
    answer = collector.intake.post("/v1/profiles/delay/1", content=body, headers=headers)
    collector.settled(lambda: collector.collector.measurer.waiting() == 0)
    return answer


def send(collector: Any, batch: pa.RecordBatch) -> None:
    assert collector.intake.post("/v1/events", content=to_ipc(batch)).status_code == 200
    collector.settled(lambda: collector.collector.measurer.waiting() == 0)


def part(reference: Profile, columns: list[str], rows: pa.Table) -> Profile:
    return Profile({name: reference.columns[name] for name in columns}).empty().updated(rows)


def window_of(collector: Any) -> Any:
    (window,) = collector.collector.measures.judged("delay", "1", 10)
    return window.pane


FEATURES = ["feature.x", "feature.carrier"]


def test_profiles_give_the_verdicts_that_their_rows_would(
    config: Any, clock: Any, events: Events, start: Any, tmp_path: Any
) -> None:
    reference, rows = Profile.of(table(events(3000, seed=5))), events(500, shift=1.5)
    views = []
    for name, source in (("by-rows", False), ("by-profiles", FEATURES)):
        own = replace(config, lake=tmp_path / name / "lake", store_url=f"sqlite:///{tmp_path / name}.db")
        with start(own, clock) as collector:
            assert (
                collector.intake.put("/v1/references/delay/1", content=declared(reference, source)).status_code == 200
            )
            for number in range(5):
                piece = rows.slice(number * 100, 100)
                if source:
                    assert post(collector, part(reference, FEATURES, table(piece))).json()["accepted_rows"] == 100
                    piece = without_features(piece)
                send(collector, piece)
            clock.advance(60)
            collector.settled(lambda c=collector: c.query.get("/api/drift/delay").json()["windows"])
            view = collector.query.get("/api/drift/delay").json()
            violations = collector.query.get("/api/quality/delay").json()["broken"]
            signals = collector.collector.signals.metrics
            assert signals[names.PROFILE_ROWS].labels("delay", "1")._value.get() == (500 if source else 0)
            views.append(view["windows"][0])
            assert all(item["rule"] != "required" for item in violations)
        clock.now = T0

    assert views[0]["columns"]["feature.x"]["drifted"]
    assert views[0]["rows"] == views[1]["rows"] == 500
    for name, column in views[0]["columns"].items():
        other = views[1]["columns"][name]
        assert column["counts"] == other["counts"], name
        assert (column["psi"], column["drifted"], column["missing_ratio"]) == (
            other["psi"],
            other["drifted"],
            other["missing_ratio"],
        )


def test_a_column_that_is_declared_is_never_counted_from_events_and_others_never_from_profiles(
    collector: Any, clock: Any, events: Events
) -> None:
    reference, rows = Profile.of(table(events(3000, seed=5))), events(300)
    collector.intake.put("/v1/references/delay/1", content=declared(reference, ["feature.x"]))

    send(collector, rows)
    post(collector, part(reference, ["feature.x"], table(rows.slice(0, 200))))
    refused = post(collector, part(reference, ["feature.carrier"], table(rows)))
    clock.advance(60)
    collector.settled(lambda: collector.collector.measures.judged("delay", "1", 1))

    columns = window_of(collector).profile.columns
    assert {name: column.rows for name, column in columns.items()} == {
        "feature.x": 200,
        "feature.carrier": 300,
        "prediction.p": 300,
    }
    assert refused.status_code == 409
    assert "takes feature.carrier from its events" in refused.json()["error"]


def test_sent_again_it_has_no_second_effect(collector: Any, clock: Any, events: Events) -> None:
    reference = Profile.of(table(events(3000, seed=5)))
    collector.intake.put("/v1/references/delay/1", content=declared(reference, True))
    posted = reference.empty().updated(table(events(40)))

    answers = [post(collector, posted, batch_id="one").json()]
    collector.collector.log.compact()
    answers.append(post(collector, posted, batch_id="one").json())
    clock.advance(60)
    collector.settled(lambda: collector.collector.measures.judged("delay", "1", 1))

    assert [answer["duplicate"] for answer in answers] == [False, True]
    assert window_of(collector).profile == posted
    assert window_of(collector).seen == 40


@pytest.mark.parametrize("compacted", [False, True])
def test_a_restart_finds_the_profiles_of_open_windows(
    config: Any, clock: Any, events: Events, start: Any, compacted: bool
) -> None:
    reference = Profile.of(table(events(3000, seed=5)))
    with start(config, clock) as collector:
        collector.intake.put("/v1/references/delay/1", content=declared(reference, True))
        post(collector, reference.empty().updated(table(events(40))), T0, T0 + 4)
        if compacted:
            collector.collector.log.compact()
    with start(config, clock) as collector:
        post(collector, reference.empty().updated(table(events(30, seed=1))), T0 + 4, T0 + 8)
        clock.advance(60)
        collector.settled(lambda: collector.collector.measures.judged("delay", "1", 1))
        assert window_of(collector).profile.columns["feature.x"].rows == 70
        # A closed window is amended by what comes late, and its profiles are let go of once it is kept.
        post(collector, reference.empty().updated(table(events(5, seed=2))), T0 + 2, T0 + 3)
        collector.collector.log.compact()
        collector.collector.housekeeping().prune()
        with collector.collector.journal.engine.connect() as connection:
            assert connection.execute(sa.select(sa.func.count()).select_from(PROFILES)).scalar() == 0
    with start(config, clock) as collector:
        assert window_of(collector).profile.columns["feature.x"].rows == 75


def test_what_does_not_fit_is_refused_and_says_why(collector: Any, events: Events) -> None:
    rows = table(events(300))
    reference = Profile.of(table(events(3000, seed=5)))
    posted = reference.empty().updated(rows)

    assert post(collector, posted).status_code == 404
    unknown = collector.intake.put("/v1/references/delay/1", content=declared(reference, ["feature.y"]))
    assert unknown.status_code == 400
    assert "feature.y" in unknown.json()["error"]
    collector.intake.put("/v1/references/delay/1", content=reference.to_json())
    assert post(collector, posted).status_code == 409
    collector.intake.put("/v1/references/delay/1", content=declared(reference, True))
    other = Profile.of(rows)
    stranger = Profile({**posted.columns, "feature.z": posted.columns["feature.x"]})
    for body, start, end, said in (
        (posted, "", T0, "X-Profile-Start is missing"),
        (posted, T0, "soon", "X-Profile-End says 'soon'"),
        (posted, T0, "inf", "X-Profile-End says 'inf'"),
        (posted, T0 + 5, T0, "before it starts"),
        (posted, T0, T0 + 11, "windows are 10 s long"),
        (b"{}", T0, T0, "not a profile"),
        (b"\xff\xfe", T0, T0, "not a profile"),
        (Profile({}), T0, T0, "no columns"),
        (other, T0, T0, "not counted over the bins and categories"),
        (stranger, T0, T0, "no column feature.z"),
    ):
        answer = post(collector, body, start, end)
        assert (answer.status_code, said in answer.json()["error"]) == (400, True), (said, answer.text)
    assert post(collector, b"x" * (17 << 20)).status_code == 413
    assert post(collector, posted, "2013-03-11T11:06:40Z", T0 + 9).json()["accepted_rows"] == 300


SETTINGS = WindowSettings(window_seconds=10, allowed_lateness_seconds=2, quiet_seconds=5, future_seconds=100)


@settings(deadline=None, max_examples=30)
@given(data=st.data())
def test_however_rows_are_divided_and_ordered_the_windows_are_the_same(data: Any, events_of: Events) -> None:
    reference = Profile.of(table(events_of(500, seed=5)))
    seconds = np.sort(np.random.default_rng(1).uniform(T0, T0 + 40, 120))
    rows = table(events_of(120, time_s=seconds))
    numbers = np.floor(seconds / 10).astype(int)
    whole = Windows(SETTINGS)
    whole.set_reference("delay", "1", reference)
    whole.add(rows, T0 + 40)
    divided = Windows(SETTINGS)
    divided.set_reference("delay", "1", reference, Source(frozenset({"feature.x", "prediction.p"})))
    steps: list[Any] = []
    for number in np.unique(numbers).tolist():
        chosen = np.flatnonzero(numbers == number)
        cuts = sorted(data.draw(st.sets(st.integers(0, len(chosen)), max_size=3)))
        for piece in np.split(chosen, cuts):
            if len(piece):
                own = part(reference, ["feature.x", "prediction.p"], rows.take(pa.array(piece)))
                steps.append(ProfileBatch("delay", "1", seconds[piece[0]], seconds[piece[-1]], own))
                steps.append(rows.take(pa.array(piece)))
    for step in data.draw(st.permutations(steps)):
        (divided.add_profile if isinstance(step, ProfileBatch) else divided.add)(step, T0 + 40)

    left, right = whole.open_panes(), divided.open_panes()
    assert [pane.start for pane in left] == [pane.start for pane in right]
    for one, other in zip(left, right, strict=True):
        assert one.rows == one.seen == other.seen == other.rows
        ours, theirs = one.folded().profile, other.folded().profile
        assert ours is not None
        assert theirs is not None
        for name, column in ours.columns.items():
            assert (column.counts == theirs.columns[name].counts).all()
            assert column.missing == theirs.columns[name].missing


def test_rows_of_events_that_lack_a_declared_column_are_not_missing_in_slices_either(events: Events) -> None:
    from_profiles = Source(frozenset({"feature.x"}))
    reference, rows = Profile.of(table(events(500, seed=5))), table(events(90))
    windows = Windows(SETTINGS, slicing=Slicing(columns=("feature.carrier",)))
    windows.set_reference("delay", "1", reference, from_profiles)
    windows.add(rows.slice(0, 60), T0)
    windows.add(rows.slice(60).drop_columns(["feature.x"]), T0)

    (pane,) = windows.open_panes()
    parts = pane.folded().slices["feature.carrier"].values()
    assert sum(p.rows for p in parts) == 90
    assert sum(p.profile.columns["feature.x"].rows for p in parts) == 60
    assert sum(p.profile.columns["feature.x"].missing for p in parts) == 0
    assert pane.profile is not None
    assert pane.profile.columns["feature.x"].rows == 0


def test_a_joint_part_comes_from_events_that_have_all_its_columns_and_from_profiles_where_all_does() -> None:
    draw = np.random.default_rng(0)
    batch = event_batch(
        ids=[str(row) for row in range(400)], time_ns=round(T0 * 1e9), model="delay", version="1", outcome="ok",
        latency_seconds=0.01, features={"x": draw.normal(size=400), "y": draw.normal(size=400)},
        predictions={"p": draw.random(400)},
    )  # fmt: skip
    rows = table(batch)
    reference = Profile.of(rows, joint=True)
    for source, posted, events, joint in (
        (EVENTS, None, rows, 400),
        (Source(frozenset({"feature.x"})), ["feature.x"], rows, 400),
        (Source(frozenset({"feature.x"})), ["feature.x"], rows.drop_columns(["feature.x"]), 0),
        (Source(frozenset(reference.columns), joint=True), None, rows, 0),
        (Source(frozenset(reference.columns), joint=True), list(reference.columns), rows, 400),
    ):
        windows = Windows(SETTINGS)
        windows.set_reference("delay", "1", reference, source)
        if posted:
            own = reference.empty().updated(rows)
            carried = Profile({name: own.columns[name] for name in posted}, own.joint if source.joint else None)
            windows.add_profile(ProfileBatch("delay", "1", T0, T0 + 1, carried), T0)
        windows.add(events, T0)
        (pane,) = windows.open_panes()
        profile = pane.folded().profile
        assert profile is not None
        assert profile.joint is not None
        assert profile.joint.count == joint
