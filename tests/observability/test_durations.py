"""Durations as Prometheus reads and writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability.durations import duration_ms, duration_text


@given(st.integers(0, 9 * 10**12))
def test_what_is_written_is_read(milliseconds: int) -> None:
    assert duration_ms(duration_text(milliseconds)) == milliseconds


@pytest.mark.parametrize("text", ["", "5", "1.5s", "-5m", "30m1h", "1h1h", "1h 30m", "5M", "٣s", "300y"])
def test_what_prometheus_refuses_is_refused_with_the_text(text: str) -> None:
    with pytest.raises(ValueError, match=f"duration.*{text}"):
        duration_ms(text)
