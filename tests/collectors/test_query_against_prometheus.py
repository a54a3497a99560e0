"""The same expressions to our engine and to a real Prometheus that holds the same samples."""

from __future__ import annotations

import math
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from collectors.query import (
    PROMETHEUS_2,
    PROMETHEUS_3,
    Engine,
    Matrix,
    PrometheusClient,
    QueryError,
    Result,
    Scalar,
    Semantics,
    Vector,
)
from collectors.store import Store
from trimtab.ports import free_port

pytestmark = pytest.mark.slow

# Samples lie 3.2 s behind multiples of 15 s and no query looks at such a moment: whether a range includes its oldest
# moment, where versions differ, does not matter then.
START = 1_700_000_100_000
STEP = 15_000
SAMPLES = 200
AT = START + 150 * STEP + 7_000

Series = dict[tuple[tuple[str, str], ...], list[tuple[int, float]]]

EXPRESSIONS = [
    "requests_total",
    'requests_total{model="a"}',
    'requests_total{model!="a",outcome=~"ok|err.*"}',
    'requests_total{model!~"a|b"}',
    'temperature{nothing=""}',
    "requests_total offset 5m",
    "requests_total @ 1700001000",
    "rate(requests_total[1m])",
    "rate(requests_total[5m])",
    "increase(requests_total[10m])",
    "irate(requests_total[2m])",
    "delta(temperature[5m])",
    "idelta(temperature[5m])",
    "deriv(temperature[10m])",
    "predict_linear(temperature[10m], 3600)",
    "changes(temperature[10m])",
    "resets(requests_total[30m])",
    "avg_over_time(temperature[5m])",
    "min_over_time(temperature[5m])",
    "max_over_time(temperature[5m])",
    "sum_over_time(temperature[5m])",
    "count_over_time(temperature[5m])",
    "last_over_time(temperature[1m])",
    "present_over_time(temperature[1m])",
    "stddev_over_time(temperature[5m])",
    "stdvar_over_time(temperature[5m])",
    "quantile_over_time(0.3, temperature[5m])",
    "absent_over_time(temperature[5m])",
    'absent(temperature{room="nowhere", x="y"})',
    "sum by (model) (rate(requests_total[5m]))",
    "sum without (outcome, instance) (requests_total)",
    "avg(temperature)",
    "count by (model) (requests_total)",
    "stddev by (outcome) (requests_total)",
    "topk(3, requests_total)",
    "bottomk by (model) (1, requests_total)",
    "quantile by (model) (0.9, requests_total)",
    'count_values("value", round(temperature / 5))',
    "histogram_quantile(0.9, sum by (le, model) (rate(latency_seconds_bucket[5m])))",
    "histogram_quantile(0.5, rate(latency_seconds_bucket[5m]))",
    'sum by (model) (rate(requests_total{outcome="error"}[5m])) / sum by (model) (rate(requests_total[5m]))',
    'requests_total{outcome="error"} / ignoring(outcome) group_left requests_total{outcome="ok"}',
    "requests_total * on(model) group_left(place) "
    'label_replace(max by (model) (requests_total), "place", "$1!", "model", "(.*)")',
    'max by (model) (requests_total) - on(model) group_right(room) requests_total{outcome="ok"}',
    "temperature > 15",
    "temperature > bool 15",
    "2 ^ temperature % 7",
    "-temperature + 1 == 3 or temperature",
    'requests_total and on(model) requests_total{outcome="error"} > 100',
    'requests_total unless on(model) requests_total{model="a"}',
    "scalar(sum(temperature)) + time()",
    "timestamp(temperature)",
    "clamp(temperature, 5, 15)",
    "round(temperature, 0.5)",
    "sgn(temperature - 15)",
    "hour(timestamp(temperature)) + minute() + day_of_week() + days_in_month()",
    'label_replace(temperature, "place", "$1-x", "room", "r(.*)")',
    'label_join(requests_total, "both", "/", "model", "outcome")',
    "max_over_time(sum(rate(requests_total[2m]))[10m:1m])",
    "avg_over_time(rate(requests_total[2m])[10m:30s] offset 1m)",
    "sum(rate(requests_total[5m])) > 0.5 and sum(temperature) < 1e9",
    "vector(1) + on() sum(temperature)",
    "sort_desc(temperature)",
]


def _series() -> Series:
    chance = random.Random(7)
    found: Series = {}
    for model in "abc":
        for instance in "12":
            for outcome in ("ok", "error"):
                labels = {"__name__": "requests_total", "model": model, "instance": instance, "outcome": outcome}
                found[tuple(sorted(labels.items()))] = _counter(chance, 0.002)
            counts = [0.0] * 5
            rows: list[list[float]] = []
            for _ in range(SAMPLES):
                counts = [before + chance.randrange(9) for before in counts]
                rows.append(np.cumsum(counts).tolist())
            for index, bound in enumerate(("0.1", "0.5", "1.0", "5.0", "+Inf")):
                labels = {"__name__": "latency_seconds_bucket", "model": model, "instance": instance, "le": bound}
                values = [row[index] for row in rows]
                found[tuple(sorted(labels.items()))] = list(zip(_times(), values, strict=True))
    for room in range(6):
        labels = {"__name__": "temperature", "room": f"r{room}"}
        values = [(t, chance.gauss(15, 6)) for t in _times() if chance.random() > 0.1 * room]
        found[tuple(sorted(labels.items()))] = values
    return found


def _times() -> list[int]:
    return [START + step * STEP + 3_200 for step in range(SAMPLES)]


def _counter(chance: random.Random, reset: float) -> list[tuple[int, float]]:
    value, rows = float(chance.randrange(50)), []
    for t_ms in _times():
        value = 0.0 if chance.random() < reset else value + chance.randrange(20)
        rows.append((t_ms, value))
    return rows


def _openmetrics(series: Series) -> str:
    kinds = {"requests": "counter", "latency_seconds": "histogram", "temperature": "gauge"}
    lines: list[str] = []
    for family, kind in kinds.items():
        lines.append(f"# TYPE {family} {kind}")
        for key, rows in series.items():
            labels = dict(key)
            if labels.pop("__name__").startswith(family):
                inside = ",".join(f'{name}="{value}"' for name, value in labels.items())
                lines += [f"{dict(key)['__name__']}{{{inside}}} {value!r} {t_ms / 1000:.3f}" for t_ms, value in rows]
    return "\n".join([*lines, "# EOF", ""])


@pytest.fixture(scope="module")
def series() -> Series:
    return _series()


@pytest.fixture(scope="module")
def store(series: Series) -> Iterator[Store]:
    store = Store("sqlite://", clock=lambda: START / 1000)
    by_time: dict[int, list[tuple[dict[str, str], float]]] = {}
    for key, rows in series.items():
        for t_ms, value in rows:
            by_time.setdefault(t_ms, []).append((dict(key), value))
    for t_ms in sorted(by_time):
        store.append("t", t_ms, by_time[t_ms], stale=False)
    yield store
    store.close()


@pytest.fixture(scope="module")
def prometheus(series: Series, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PrometheusClient]:
    if shutil.which("prometheus") is None or shutil.which("promtool") is None:
        pytest.skip("prometheus and promtool are not installed (Debian: prometheus)")
    folder = tmp_path_factory.mktemp("prometheus")
    (folder / "samples.txt").write_text(_openmetrics(series))
    (folder / "p.yml").write_text("global: {scrape_interval: 1h}\n")
    make_blocks = ["promtool", "tsdb", "create-blocks-from", "openmetrics", "samples.txt", "data"]
    subprocess.run(make_blocks, cwd=folder, check=True, capture_output=True, timeout=60)
    port = free_port()
    command = [
        "prometheus", "--config.file=p.yml", "--storage.tsdb.path=data", "--storage.tsdb.retention.time=100y",
        f"--web.listen-address=127.0.0.1:{port}", "--log.level=error",
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
    client = PrometheusClient(f"http://127.0.0.1:{port}")
    try:
        _wait_until_it_answers(client, server, folder / "log")
        yield client
    finally:
        client.close()
        server.terminate()
        server.wait(60)


def _wait_until_it_answers(client: PrometheusClient, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(300):
        if server.poll() is not None:
            break
        try:
            if len(_elements(client.instant("count(temperature)", AT / 1000))):
                return
        except QueryError:
            pass  # it is not up yet
        time.sleep(0.1)
    pytest.fail(f"prometheus did not start: {log.read_text()[-2000:]}")


def _elements(result: Result) -> dict[frozenset[tuple[str, str]], Sequence[float]]:
    if isinstance(result, Scalar):
        return {frozenset(): [result.value]}
    if isinstance(result, Vector):
        return {frozenset(element.labels.items()): [element.value] for element in result}
    assert isinstance(result, Matrix)
    points = {frozenset(s.labels.items()): (s.t.tolist(), s.v.tolist()) for s in result}
    return {key: [*(float(t) for t in times), *values] for key, (times, values) in points.items()}


def _agree(ours: Result, theirs: Result) -> None:
    mine, other = _elements(ours), _elements(theirs)

    assert mine.keys() == other.keys()
    for key, values in other.items():
        # Least squares are computed from other sums here, so a few digits differ.
        np.testing.assert_allclose(mine[key], values, rtol=1e-8, atol=1e-9, err_msg=str(sorted(key)))


@pytest.mark.parametrize("expr", EXPRESSIONS)
@pytest.mark.parametrize("semantics", [PROMETHEUS_3, PROMETHEUS_2], ids=["v3", "v2"])
def test_an_expression_gives_what_prometheus_gives(
    expr: str, semantics: Semantics, store: Store, prometheus: PrometheusClient
) -> None:
    engine = Engine(store, semantics=semantics)

    _agree(engine.instant(expr, AT), prometheus.instant(expr, AT / 1000))
    if not expr.startswith(("topk", "bottomk", "sort")):
        start, end = AT - 900_000, AT + 300_000
        _agree(engine.range(expr, start, end, 60_000), prometheus.range(expr, start / 1000, end / 1000, 60))


def test_order_is_that_of_prometheus_where_the_query_asks_for_one(store: Store, prometheus: PrometheusClient) -> None:
    for expr in ("sort(temperature)", "sort_desc(temperature)", "topk(4, temperature)", "bottomk(3, temperature)"):
        ours, theirs = Engine(store).instant(expr, AT), prometheus.instant(expr, AT / 1000)
        assert isinstance(ours, Vector)
        assert isinstance(theirs, Vector)
        assert [e.labels for e in ours] == [e.labels for e in theirs]


@pytest.mark.parametrize(
    "expr",
    ["requests_total / requests_total{", "rate(temperature)", "temperature + on(room) group_left requests_total + 1 +",
     "requests_total / on(model) requests_total", "label_replace(temperature, \"room\", \"x\", \"\", \"\")",
     'requests_total / on(model, instance) group_left(outcome) requests_total{outcome="ok"}', "nonsense(temperature)",
     "sum(1)", "{}", "temperature and 1", "1 > 2"],
)  # fmt: skip
def test_what_prometheus_refuses_is_refused(expr: str, store: Store, prometheus: PrometheusClient) -> None:
    with pytest.raises(QueryError) as theirs:
        prometheus.instant(expr, AT / 1000)
    with pytest.raises(QueryError) as ours:
        Engine(store).instant(expr, AT)

    assert ours.value.kind == theirs.value.kind


def test_a_matrix_of_raw_samples_is_the_same(store: Store, prometheus: PrometheusClient) -> None:
    _agree(Engine(store).instant("temperature[5m]", AT), prometheus.instant("temperature[5m]", AT / 1000))


def test_numbers_that_are_not_finite_come_through(store: Store, prometheus: PrometheusClient) -> None:
    ours, theirs = Engine(store).instant("temperature / 0", AT), prometheus.instant("temperature / 0", AT / 1000)

    assert _elements(ours) == _elements(theirs)
    assert math.inf in [value for (value,) in _elements(ours).values()]
