"""promtool's unit tests of rules: the same files, the same verdicts."""

from alerts.rule_tests.junit import junit
from alerts.rule_tests.run import FileVerdict, Options, Verdict, run_file

__all__ = ["FileVerdict", "Options", "Verdict", "junit", "run_file"]
