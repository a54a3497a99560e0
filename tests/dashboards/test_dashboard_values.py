"""Formatting, timelines, readings and queries: pure functions."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from datetime import UTC
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import promql_parser
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dashboards import DashboardConfig, command, distances, grafana, journal, queries, readings, skew
from dashboards import format as fmt
from dashboards.distances import joint_series, joint_words, trend
from dashboards.distributions import compare
from dashboards.launch import arguments, parse
from dashboards.series import Series, Span
from dashboards.timeline import AlertSpan, Band, runs, timeline
from dashboards.traffic import Share, shares
from dashboards.views.drift import alarm_words

GOLDEN = Path(__file__).parents[1] / "golden" / "grafana"
SPAN = Span(1000.0, 1100.0, 10.0)


def series(labels: dict[str, str], points: dict[float, float]) -> Series:
    return Series(labels, np.array(list(points)), np.array(list(points.values())))


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (fmt.seconds(0.000812), "812 µs"), (fmt.seconds(0.0043), "4.3 ms"), (fmt.seconds(200), "3 min 20 s"),
        (fmt.seconds(7500), "2 h 5 min"), (fmt.seconds(None), "–"), (fmt.seconds(math.nan), "–"),
        (fmt.number(12345), "12.3 k"), (fmt.number(950), "950"), (fmt.number(4_100_000), "4.1 M"),
        (fmt.number(1.29e14), "1.3·10¹⁴"), (fmt.number(9.99e12), "1·10¹³"),
        (fmt.number(1840), "1 840"), (fmt.number(math.inf), "∞"), (fmt.percent(0.00420), "0.42 %"),
        (fmt.percent(0.00001), "<0.01 %"), (fmt.percent(0), "0 %"), (fmt.percent(1), "100 %"),
        (fmt.ago(100, 160), "1 min ago"), (fmt.ago(100, 100.5), "just now"), (fmt.ago(400, 100), "in 5 min"),
        (fmt.clock(3661, UTC), "01:01:01"), (fmt.version("3"), "v3"), (fmt.column("feature.temp"), "temp"),
    ],
)  # fmt: skip
def test_values_are_said_as_people_say_them(said: str, meant: str) -> None:
    assert said == meant


@given(st.floats(allow_nan=True, allow_infinity=True))
def test_no_value_is_ever_written_as_nan(value: float) -> None:
    for text in (fmt.number(value), fmt.percent(value), fmt.seconds(value)):
        assert text
        assert "nan" not in text


def test_the_command_line_carries_the_whole_config() -> None:
    config = DashboardConfig(
        query_url="http://q:1",
        collector_url="http://c:1",
        model="m",
        theme="dark",
        port=9,
        patience_seconds=3.0,
        secret_file=Path("/s"),
    )

    line = command(config)
    app = line[line.index("--") + 1 :]

    assert parse(app) == replace(config, port=DashboardConfig().port)
    assert app == arguments(config)
    assert line[line.index("--server.port") + 1] == "9"
    assert line[line.index("--browser.gatherUsageStats") + 1] == "false"


def test_a_config_without_a_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match=r"alerts_url is '127\.0\.0\.1:9093'"):
        DashboardConfig(alerts_url="127.0.0.1:9093")


def test_a_timeline_has_bands_for_weights_and_spans_for_alerts() -> None:
    weights = [series({"version": "2", "role": "canary"}, {1000: 0.1, 1010: 0.1, 1020: 0.5, 1050: 0.5})]
    alerts = [series({"alertname": "Bad", "severity": "page", "alertstate": "firing"}, {1020: 1, 1030: 1})]
    action = {"action": "rollback", "state": "done", "alert": "Bad", "reason": "harm", "completed_at": 1031.0}
    event = {"time": 1000.0, "event": "canary", "version": "2", "release": "m-1", "reason": None, "actor": "ada"}

    story = timeline(SPAN, weights, alerts, [action, {**action, "completed_at": 10.0}], [event])

    assert story.bands == (
        Band("2", "canary", 0.1, 1000.0, 1020.0), Band("2", "canary", 0.5, 1020.0, 1030.0),
        Band("2", "canary", 0.5, 1050.0, 1060.0),
    )  # fmt: skip
    assert story.alerts == (AlertSpan("Bad", "page", "firing", 1020.0, 1040.0),)
    assert [(mark.title, mark.why) for mark in story.marks] == [
        ("canary v2", "m-1 (ada)"),
        ("rollback done", "harm (Bad)"),
    ]


@given(st.lists(st.integers(0, 200), unique=True, max_size=40))
def test_runs_cover_every_point_once_and_split_at_every_hole(ticks: list[int]) -> None:
    times = np.array(sorted(ticks), dtype=float)

    parts = runs(times, 1.0)

    assert [i for first, last in parts for i in range(first, last + 1)] == list(range(len(times)))
    for first, last in parts:
        assert (np.diff(times[first : last + 1]) == 1).all()
    for (_, last), (first, _) in pairwise(parts):
        assert times[first] - times[last] > 1


@given(st.floats(1, 1e7), st.floats(1e9, 2e9))
def test_a_span_ends_on_its_grid_and_has_few_points(duration: float, now: float) -> None:
    span = Span.last(duration, now)

    assert span.end <= now < span.end + span.step + 1e-6
    assert (span.end - span.start) / span.step <= 181 or span.step == 86400


def test_an_error_budget_counts_faults_only() -> None:
    counts = {"ok": 9990.0, "model_error": 5.0, "rejected": 400.0}
    outcomes = [series({"outcome": name}, {1000: 7, 1010: 7 + count}) for name, count in counts.items()]

    kept = readings.availability(outcomes, 0.999, SPAN)

    assert kept.ratio == pytest.approx(1 - 5 / 9995)
    assert kept.budget_left == pytest.approx(1 - 5 / 9.995)
    assert readings.availability([], 0.999, SPAN).ratio is None


def test_a_release_that_is_born_with_faults_spends_the_budget() -> None:
    stable = series({"version": "1", "outcome": "ok"}, {1010: 500, 1020: 600, 1030: 900})
    bad = series({"version": "2", "outcome": "non_finite"}, {1020: 5, 1030: 5})

    kept = readings.availability([stable, bad], 0.999, SPAN)

    assert (kept.requests, kept.faults) == (405, 5)


def test_a_counter_gains_its_first_value_what_follows_a_reset_and_each_run_of_a_job() -> None:
    runs_ended = series({}, {1010: 1, 1020: 1, 1060: 1, 1070: 1})

    assert readings.gained(runs_ended, SPAN, gaps_restart=True) == 2
    assert readings.gained(runs_ended, SPAN) == 1
    assert readings.gained(series({}, {1000: 4, 1010: 6, 1020: 1, 1030: 3}), SPAN) == 5
    assert readings.gained(series({}, {}), SPAN) == 0


def test_a_run_is_drawn_from_its_first_report_to_its_last() -> None:
    loss = series({}, {1000: 0, 1010: 0, 1020: 0.7, 1030: 0.6, 1040: 0.5, 1050: 0.5, 1060: 0.5})

    assert readings.while_running(loss).times.tolist() == [1020, 1030, 1040]
    assert len(readings.while_running(series({}, {1000: 0})).times) == 1


def test_a_version_without_requests_has_no_latency() -> None:
    rate = series({}, {1000: 0, 1010: 5, 1020: 0})
    latency = series({}, {1000: 0, 1010: 0.02, 1020: 0})

    assert readings.while_served(latency, rate).values.tolist() == [0.02]
    assert readings.total([series({}, {1000: math.nan, 1010: 3})]).times.tolist() == [1010]


@given(st.integers(0, 400), st.sampled_from([300.0, 900.0, 3600.0]))
def test_a_span_starts_where_data_does_and_loses_no_point(age: int, duration: float) -> None:
    whole = Span.last(duration, 1_000_000.0)
    known = series({}, {1_000_000.0 - t: 1 for t in range(age, -1, -1)})

    shown = whole.since_first([known])

    assert shown.end == whole.end
    assert shown.end - shown.start >= 60
    assert shown.start <= max(whole.start, known.times[0])
    assert shown.start >= min(whole.start, known.times[0]) - 2 * whole.step or shown.end - shown.start <= 62


def test_reasons_are_told_without_alert_and_mode() -> None:
    release = {"reason": "harm is proved (e-value 1.17e+04 >= 100): 5 of 14 canary requests failed"}
    notes = {"annotations": {"summary": "Version 2 fails"}, "fired_at": 1.8e9, "value": 200}
    action = {
        "alert": "Bad",
        "reason": "Bad: Version 2 fails (the mode is auto)",
        "evidence": {**notes, "release": release},
    }

    assert journal.reason_words(action["reason"], "Bad") == "Version 2 fails"
    assert journal.why(action) == "harm is proved (e-value 11.7 k ≥ 100): 5 of 14 canary requests failed"
    assert journal.evidence_words(action["evidence"]) == journal.why(action)
    assert journal.evidence_words(notes) == "Version 2 fails"
    assert journal.evidence_words({"fired_at": 1.8e9, "labelled_rows": 1840}) == "labelled rows 1 840"
    assert journal.why({"reason": "by hand"}) == "by hand"


def test_what_was_not_judged_is_no_drift() -> None:
    scores = {"psi": 9.0, "threshold": 0.25, "drifted": False, "reason": "too_few_rows"}
    fine = {"psi": 0.3, "threshold": 0.25, "drifted": True, "reason": "drifted"}
    windows = [
        {"version": "1", "start": 0, "end": 10, "rows": 9, "columns": {"feature.a": fine, "feature.b": scores}},
        {"version": "2", "start": 10, "end": 20, "rows": 1, "columns": {"feature.a": scores}},
    ]

    matrix = distances.drift_matrix(windows)

    assert matrix.most_drifted == "feature.a"
    np.testing.assert_array_equal(matrix.values, [[0.3, np.nan], [np.nan, np.nan]])
    assert matrix.words[1, 0] == "not judged: too few rows, version 1"
    assert distances.newest_judged(windows) is windows[0]
    assert distances.newest_judged(windows[1:]) is windows[1]


@given(st.integers(1, 200), st.integers(0, 2**31))
def test_joined_bins_are_few_keep_every_share_and_are_true_to_their_labels(size: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    edges = np.unique(np.round(random.gamma(2.0, 50.0, size + 1), 2))
    counts = [random.integers(0, 50, len(edges) + 1).tolist() for _ in range(2)]
    layout = {"edges": edges.tolist()}

    both = compare({**layout, "counts": counts[0]}, {**layout, "counts": counts[1]})

    assert both is not None
    assert both.edges is not None
    assert len(both.labels) == len(both.reference) == len(both.edges) - 1 <= 26
    for parts, count in ((both.reference, counts[0]), (both.current, counts[1])):
        assert parts.sum() == pytest.approx(1 if sum(count) else 0)
    assert set(both.edges[np.isfinite(both.edges)]) <= set(edges)


def test_totals_and_shares_follow_the_union_of_times() -> None:
    whole = readings.total([series({}, {1000: 4, 1010: 8}), series({}, {1010: 2, 1020: 0})])
    part = series({}, {1010: 5})

    assert whole.values.tolist() == [4, 10, 0]
    np.testing.assert_array_equal(readings.share(part, whole).values, [0, 0.5, np.nan])


def test_distributions_are_compared_over_the_same_bins_only() -> None:
    reference = {"edges": [0, 1, 2], "counts": [0, 6, 4, 0]}

    both = compare(reference, {"edges": [0, 1, 2], "counts": [5, 5, 0, 0]})

    assert both is not None
    assert both.labels == ("below 0", "0 to 1", "1 to 2")
    assert both.current.tolist() == [0.5, 0.5, 0]
    assert compare(reference, {"edges": [0, 1, 3], "counts": [5, 5, 0, 0]}) is None


def test_rare_categories_are_told_as_the_rest() -> None:
    column = {"categories": [f"c{i}" for i in range(30)], "counts": list(range(30, 0, -1))}

    both = compare(column, column, most_categories=5)

    assert both is not None
    assert both.labels[-1] == "25 more"
    assert both.reference.sum() == pytest.approx(1)


def test_every_query_is_promql_and_names_only_what_the_catalogue_has() -> None:
    asked = [
        *queries.overview("m", 20, 5).values(), *queries.objectives("m", 900).values(),
        *queries.serving("m", 20).values(),
        *queries.batches("m", 900).values(), *queries.drift("m").values(), *queries.training("m").values(),
        *queries.phases("m", 900).values(), *queries.beginnings("m").values(),
        *queries.training_beginnings("m").values(), queries.gauge(queries.names.TRAINING_LOSS, 'quo"te\\'),
    ]  # fmt: skip

    for query in asked:
        promql_parser.parse(query)
    assert len(asked) > 30


@pytest.mark.parametrize("name", ["serving", "drift", "training"])
def test_the_grafana_export_is_the_golden_one(name: str) -> None:
    """After a wanted change: `python -m dashboards.grafana tests/golden/grafana` writes them anew."""
    made = grafana.export("prometheus")[name]

    assert made == json.loads((GOLDEN / f"{name}.json").read_text())


def test_grafana_panels_ask_the_given_source_in_valid_promql_and_do_not_overlap() -> None:
    for dashboard in grafana.export("my-uid").values():
        cells = set()
        for panel in dashboard["panels"]:
            grid = panel["gridPos"]
            own = {
                (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
            }
            assert grid["x"] + grid["w"] <= 24
            assert not own & cells
            cells |= own
            assert panel["datasource"]["uid"] == "my-uid"
            for target in panel["targets"]:
                promql_parser.parse(target["expr"].replace("$__rate_interval", "1m"))


def test_skew_names_the_columns_that_differ_and_escapes_them() -> None:
    column = {"differs": True, "score": None, "threshold": None, "missing_ratio": 1.0, "reference_missing_ratio": 0.0}
    first = {"version": "2", "start": 0.0, "end": 60.0, "rows": 50, "columns": {"feature.<b>": column}}
    same = {**first, "version": "3", "columns": {"feature.a": {**column, "differs": False}}}

    ((name, version, when, distance, missing),) = skew.rows([first, same], UTC)

    assert (name, version, missing) == ("&lt;b&gt;", "v2", "0 % → 100 %")
    assert when.endswith("50 rows")
    assert distance.count("–") == 2
    assert skew.judged([first, same]) == "v2: 1 columns, v3: 1 columns"
    assert not skew.rows([same], UTC)


def test_an_alarm_of_missing_values_is_told_as_one() -> None:
    looks = {"before": {"mean": 1.0, "deviation": 2.0}, "now": {"mean": 1.5, "deviation": 2.0}}
    missing = {"reference": 0.0, "now": 0.4, "p_value": 1e-9}

    said = f"missing: {fmt.percent(0.0)} → {fmt.percent(0.4)}"
    assert alarm_words({**looks, "cause": "missing", "missing": missing}) == said
    assert "→" in alarm_words({**looks, "cause": "values", "missing": missing})
    assert "missing" not in alarm_words(looks)


def test_shares_name_everybody_who_gets_requests_or_copies() -> None:
    canary = {"version": 2, "weight": 0.1, "release": "m-1"}
    shadows = [{"version": 3, "fraction": 0.5}, {"version": 4, "fraction": 1.0}]
    variants = [{"name": "a", "version": 1, "weight": 0.75}, {"name": "b", "version": 2, "weight": 0.25}]

    assert shares({}) == shares({"stable": None, "shadows": shadows}) == []
    assert shares({"stable": 1, "canary": None}) == [Share("1", "stable", "stable", 1.0)]
    released = shares({"stable": 1, "canary": canary, "shadow": shadows[0], "shadows": shadows})
    assert released == [
        Share("1", "stable", "stable", 0.9), Share("2", "canary", "canary", 0.1, "m-1"),
        Share("3", "shadow", "shadow", 0.5), Share("4", "shadow", "shadow", 1.0),
    ]  # fmt: skip
    assert [one.answers for one in released] == [True, True, False, False]
    tried = shares({"stable": 1, "experiment": {"release": "m-2", "variants": variants}, "shadow": shadows[0]})
    assert [(one.version, one.name, one.weight) for one in tried] == [
        ("1", "variant a", 0.75), ("2", "variant b", 0.25), ("3", "shadow", 0.5),
    ]  # fmt: skip


def test_the_columns_together_are_a_line_where_windows_tell_of_them() -> None:
    judged = {"mmd": 0.06, "threshold": 0.05, "drifted": True, "reconstruction": 1.25}
    windows = [
        {"end": 30.0, "joint": judged},
        {"end": 10.0, "joint": {**judged, "mmd": 0.01, "drifted": False, "reconstruction": None}},
        {"end": 20.0},
    ]

    distance, threshold = joint_series(windows)

    assert distance.times.tolist() == threshold.times.tolist() == [10.0, 30.0]
    assert (distance.values.tolist(), threshold.values.tolist()) == ([0.01, 0.06], [0.05, 0.05])
    assert joint_words(windows[0]) == "drifted; error by the reference's components 1.25 × its own"
    assert joint_words(windows[1]) == "within threshold"
    assert joint_words(windows[2]) == "not judged in this window"


def test_a_trend_leaves_out_windows_of_too_few_rows() -> None:
    windows = [
        {"columns": {"feature.x": {"psi": 9.0, "reason": "too_few_rows"}}},
        {"columns": {}},
        {"columns": {"feature.x": {"psi": 0.01, "reason": "within_threshold"}}},
        {"columns": {"feature.x": {"psi": 0.3, "reason": "drifted"}}},
    ]

    assert trend("feature.x", windows) == [0.01, 0.3]


@pytest.mark.parametrize(
    ("zone", "words"),
    [
        ("UTC", "UTC"),
        ("Europe/Berlin", "Europe/Berlin (UTC+1)"),
        ("Asia/Kolkata", "Asia/Kolkata (UTC+5:30)"),
        ("America/St_Johns", "America/St_Johns (UTC−3:30)"),
        ("Europe/London", "Europe/London (UTC)"),
    ],
)
def test_a_time_zone_says_how_far_it_is_from_utc(zone: str, words: str) -> None:
    assert fmt.zone(ZoneInfo(zone), 1_700_000_000.0) == words


def test_scores_are_those_of_the_kind_that_came_last() -> None:
    def score(metric: str, *times: float) -> Series:
        return Series({"metric": metric, "version": "1"}, np.array(times), np.ones(len(times)))

    assert not readings.of_numbers([])
    assert not readings.of_numbers([score("log_loss", 1.0), score("roc_auc", 1.0), score("rmse")])
    assert readings.of_numbers([score("rmse", 1.0), score("r2", 1.0)])
    assert readings.of_numbers([score("log_loss", 1.0), score("rmse", 1.0, 2.0)])
    assert not readings.of_numbers([score("log_loss", 3.0), score("rmse", 1.0, 2.0)])
