import httpx
from prometheus_client.parser import text_string_to_metric_families

from collectors.query import Engine, query_app
from collectors.store import MetricMetadata, Store

T0 = 1_700_000_000_000


def _client() -> httpx.AsyncClient:
    store = Store("sqlite://", clock=lambda: T0 / 1000)
    store.append(
        "t",
        T0,
        [
            ({"__name__": "drift_score", "column": 'a "quoted" \\ one'}, 0.5),
            ({"__name__": "drift_score", "column": "b"}, float("nan")),
            ({"__name__": "requests_total"}, 3.0),
            ({"__name__": "other"}, 1.0),
        ],
    )
    store.set_metadata({"drift_score": MetricMetadata("gauge", ""), "other": MetricMetadata("unknown", "")})
    app = query_app(Engine(store), store, clock=lambda: T0 / 1000 + 1)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://query")


async def test_the_newest_samples_of_the_chosen_series_come_as_text_that_a_parser_reads_back() -> None:
    selectors = ['{__name__=~"drift_.*"}', "requests_total", "drift_score"]

    answer = await _client().get("/federate", params={"match[]": selectors})

    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert set(families) == {"drift_score", "requests_total"}
    assert families["drift_score"].type == "gauge"
    assert {sample.labels["column"] for sample in families["drift_score"].samples} == {'a "quoted" \\ one', "b"}
    assert [sample.value for sample in families["requests_total"].samples] == [3.0]


async def test_without_a_selector_or_with_a_wrong_one_the_error_is_said() -> None:
    client = _client()

    assert (await client.get("/federate")).status_code == 400
    assert (await client.get("/federate", params={"match[]": "sum(x)"})).status_code == 400


async def test_a_type_that_the_text_format_lacks_is_given_as_untyped_or_it_would_fail_the_whole_scrape() -> None:
    answer = await _client().get("/federate", params={"match[]": "other"})

    assert answer.text.splitlines()[0] == "# TYPE other untyped"
