"""`--at`: one meaning of a time for every command."""

from __future__ import annotations

import time

import pytest

from trimtab.commands.moment import moment


@pytest.mark.parametrize(
    "text", ["1767225600", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00+01:00", "2026-01-01T00:00:00", "2026-01-01"]
)
def test_a_time_without_a_zone_is_in_utc_wherever_the_machine_is(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    try:
        found = moment(text)
    finally:
        monkeypatch.undo()
        time.tzset()

    assert found == 1767225600


@pytest.mark.parametrize("text", ["noon", "nan", "inf", "2026-13-01", ""])
def test_what_is_no_time_is_said_so(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        moment(text)

    assert "--at" in capsys.readouterr().err
