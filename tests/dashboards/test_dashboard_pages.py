"""Every page in three states: a rich stack, one without data, and no stack at all."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from streamlit.testing.v1 import AppTest

from dashboards.launch import DashboardConfig
from dashboards.testing import FakeStack
from dashboards.testing.story import CANARY_3

Open = Callable[[DashboardConfig, str], AppTest]
pytestmark = pytest.mark.slow
PAGES = ("overview", "serving", "drift", "quality", "training", "releases", "alerts")


def words(test: AppTest) -> str:
    """Everything that the page wrote as HTML."""
    bodies = [str(element.proto.body) for element in test.get("html")]
    return "\n".join(body for body in bodies if not body.startswith("<style>"))


def charts(test: AppTest) -> int:
    return len(test.get("plotly_chart"))


@pytest.mark.parametrize(
    ("page", "num_charts", "said"),
    [
        ("overview", 2, ("Service level objectives", "policy 6", "LabelsLate", "A rollback goes to v1")),
        ("serving", 9, ("flight_delay-1", "rollback", "advance", "Slow and failed requests")),
        (
            "drift",
            6,
            (
                "Distance from the reference",
                "Numeric columns together",
                "1 840 labelled rows",
                "origin EWR",
                "37.1 ± 10.9 → 78.4 ± 8.2",
                "Training–serving skew",
                "0.4 % → 31 %",
                "origin = EWR <b>and</b> 61.2 &lt;= temp &lt; 78.4",
                "newest 5 000 rows of v3",
                "+23.1 points",
                "dest = &lt;HDN&gt;",
            ),
        ),
        ("quality", 3, ("outside the range", "1 204", "PUT /v1/schemas/flight_delay")),
        (
            "training",
            5,
            ("run-20130715-c4", "2013-04-15", "4e3b51f0c2", "stable", "previous", "rank 1", "loss spike", "96.3"),
        ),
        (
            "releases",
            0,
            (
                "canary with 50 % of the requests",
                "It waits for a person",
                "1 840 labelled rows",
                "promoted",
                "rolled back",
                "harm is proved (e-value 1 290 ≥ 100)",
                "version 3 passed its gate",
            ),
        ),
        (
            "alerts",
            0,
            ("waits for approval", "Fewer than 2 000 labels", "many-to-many", "harm is proved (e-value 1 290 ≥ 100)"),
        ),
    ],
)
def test_a_page_shows_what_the_stack_knows(
    open_page: Open, rich_stack: FakeStack, page: str, num_charts: int, said: tuple[str, ...]
) -> None:
    test = open_page(rich_stack.config(), page)

    assert not test.exception
    assert charts(test) == num_charts
    for text in said:
        assert text in words(test)
    assert "tt-notice" not in words(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_without_data_says_what_will_fill_it(open_page: Open, empty_stack: FakeStack, page: str) -> None:
    test = open_page(empty_stack.config(model="not_there_yet"), page)

    assert not test.exception
    assert charts(test) == 0
    assert "tt-empty" in words(test)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_without_services_names_the_url_and_the_remedy(
    open_page: Open, nobody: DashboardConfig, page: str
) -> None:
    test = open_page(nobody, page)

    said = words(test)
    assert not test.exception
    assert not test.error
    assert nobody.alerts_url in said
    assert "trimtab alerts" in said
    for claim in (
        "All quiet",
        "No alert is active",
        "No rules are loaded",
        "No version serves",
        "Every request was ok",
    ):
        assert claim not in said


def test_a_page_of_a_known_model_claims_nothing_that_it_cannot_know(open_page: Open, nobody: DashboardConfig) -> None:
    test = open_page(replace(nobody, model="known"), "overview")

    assert "Not known" in words(test)
    for claim in ("All quiet", "No version serves", "No requests"):
        assert claim not in words(test)


def test_approving_a_waiting_action_goes_through_the_alerts_api(open_page: Open, rich_stack: FakeStack) -> None:
    test = open_page(rich_stack.config(), "alerts")

    test.button(key="approve-4").click().run()

    assert rich_stack.requests == [("POST", "/api/v1/actions/4/approve", {"actor": "dashboard"})]
    assert "waits for approval" not in words(test)


def test_rejecting_and_expiring_go_through_the_alerts_api(open_page: Open, rich_stack: FakeStack) -> None:
    test = open_page(rich_stack.config(), "alerts")

    test.button(key="reject-4").click().run()
    test.button(key="expire-s-active").click().run()

    assert [(method, path) for method, path, _ in rich_stack.requests] == [
        ("POST", "/api/v1/actions/4/reject"),
        ("DELETE", "/api/v2/silence/s-active"),
    ]


def test_a_release_in_progress_shows_its_evidence_and_what_it_lacks(open_page: Open) -> None:
    with FakeStack(halted=CANARY_3 + 40) as stack:
        test = open_page(stack.config(), "releases")

    assert not test.exception
    assert charts(test) == 2
    assert "In progress: v3" in words(test)
    assert "212 more requests" in words(test)


def test_the_evidently_report_can_be_had(open_page: Open, rich_stack: FakeStack) -> None:
    test = open_page(rich_stack.config(), "drift")

    press(test, "Make the report of v3")

    assert not test.exception
    assert len(test.get("iframe")) == 1
    assert len(test.get("download_button")) == 1


def press(test: AppTest, label: str) -> None:
    next(button for button in test.button if button.label == label).click().run()
