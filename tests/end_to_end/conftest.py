"""The demo's stack for end-to-end tests, on free ports and in a folder of its own; the flights are read once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from trimtab.demo.flights import load_flights
from trimtab.demo.plan import Plan, demo_settings
from trimtab.demo.replay import Sample, sample
from trimtab.demo.story import Story
from trimtab.demo.timeline import Timeline
from trimtab.stack import Stack, with_free_ports

SECRET = "only-for-tests"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Beside the demos' folders lies the cache of the flights."""
    folder = tmp_path_factory.mktemp("demo")
    load_flights(folder / "cache")
    return folder


@pytest.fixture
def story_of(folder: Path, request: pytest.FixtureRequest) -> Callable[[Plan], Story]:
    """A story whose stack is stopped at the end of the test."""

    def make(plan: Plan) -> Story:
        data = folder / request.node.name
        settings, _ = with_free_ports(demo_settings(data, plan, SECRET), anywhere=True)
        stack = Stack.prepare(settings)
        request.addfinalizer(stack.stop)

        def flights() -> Sample:
            return sample(load_flights(folder / "cache"), plan.since, plan.share, plan.seed)

        return Story(plan, settings, stack, Timeline(show=print), flights)

    return make
