"""Verdicts as JUnit XML, which CI systems show."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from xml.etree import ElementTree as xml

from alerts.rule_tests.run import FileVerdict


def junit(verdicts: Sequence[FileVerdict], *, now: float) -> bytes:
    """The document; `now` (unix seconds) is its timestamp."""
    root = xml.Element("testsuites")
    moment = datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    for verdict in verdicts:
        failed = sum(bool(test.failures) for test in verdict.tests)
        suite = xml.SubElement(
            root,
            "testsuite",
            name=verdict.path,
            tests=str(len(verdict.tests)),
            failures=str(failed),
            errors=str(int(bool(verdict.error))),
            timestamp=moment,
        )
        for test in verdict.tests:
            case = xml.SubElement(suite, "testcase", name=test.name)
            for failure in test.failures:
                xml.SubElement(case, "failure", message=" ".join(failure.split("exp:")[0].split())).text = failure
        if verdict.error:
            case = xml.SubElement(suite, "testcase", name=verdict.path)
            xml.SubElement(case, "error", message=verdict.error.splitlines()[0]).text = verdict.error
    xml.indent(root)
    return b'<?xml version="1.0" encoding="UTF-8"?>\n' + xml.tostring(root) + b"\n"
