"""The verdicts of `trimtab rules test` against promtool's on random files, right ones and spoilt ones."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from alerts.rule_tests import Options, run_file
from alerts.rule_tests.comparison import labels_text
from tests.alerts.rule_tests.promtool_files import Writer

FILES = 25


def fill(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Expect what our own evaluation finds: if that is not what promtool finds, the verdicts will differ."""
    cases = writer.cases()
    for name, case in cases.items():
        if "alertname" in case:
            case["exp_alerts"] = [{"exp_labels": {"case": name}}]
        else:
            case["exp_samples"] = [{"labels": f'{{case="{name}"}}', "value": 0}]
    writer.write()

    def alerts(expected: Any, got: Any) -> bool:
        cases[dict(expected[0].labels)["case"]]["exp_alerts"] = [
            {
                "exp_labels": {name: text for name, text in alert.labels if name != "alertname"},
                "exp_annotations": dict(alert.annotations),
            }
            for alert in got
        ]
        return True

    def samples(expected: Any, got: Any, *, fuzzy: bool) -> bool:
        cases[dict(expected[0][0])["case"]]["exp_samples"] = [
            {"labels": series_text(labels), "value": value} for labels, value in got
        ]
        return True

    with monkeypatch.context() as patch:
        patch.setattr("alerts.rule_tests.run.same_alerts", alerts)
        patch.setattr("alerts.rule_tests.run.same_samples", samples)
        verdict = run_file(writer.tests, Options(version="2"))
    return not verdict.failures


def series_text(labels: Any) -> str:
    return labels_text(labels)


@pytest.mark.slow
def test_verdicts_are_promtools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writers = [Writer(tmp_path, seed) for seed in range(FILES)]
    evaluated = sum([fill(writer, monkeypatch) for writer in writers])
    for writer in writers[::2]:
        writer.spoil()
    for writer in writers:
        writer.write()

    ours = {writer.tests.name: bool(run_file(writer.tests, Options(version="2")).failures) for writer in writers}
    theirs = {}
    for writer in writers:
        command = ["promtool", "test", "rules", writer.tests.name]
        theirs[writer.tests.name] = bool(subprocess.run(command, cwd=tmp_path, capture_output=True).returncode)

    assert ours == theirs
    assert evaluated > FILES // 2
    assert sum(ours.values()) >= FILES // 2 > 5
    assert sum(not failed for failed in ours.values()) > FILES // 5
