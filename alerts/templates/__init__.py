"""Go's text/template as Prometheus' rule files use it: parsing, execution, printing and functions, byte for byte."""

from alerts.templates.expansion import Surroundings, Template, expand
from alerts.templates.parsing import TemplateError

__all__ = ["Surroundings", "Template", "TemplateError", "expand"]
