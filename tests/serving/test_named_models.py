"""Models that the settings name and the registry lacks."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest

from serving import Registry, Service


async def test_a_name_that_nobody_registered_is_warned_of(
    start: Callable[..., Awaitable[Service]], registry: Registry, caplog: pytest.LogCaptureFixture
) -> None:
    service = await start(models=("nowhere",))

    assert service.health.state == "ready"
    assert caplog.messages.count("nowhere is to be served and is not registered, or has no stable version") == 1
