"""promtool's unit tests of rules: the same files, the same verdicts."""

from alerts.rule_tests.junit import junit
from alerts.rule_tests.run import FileVerdict, Options, Verdict, Version, run_file

__all__ = ["FileVerdict", "Options", "Verdict", "Version", "junit", "run_file"]
