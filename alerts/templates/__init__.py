"""Go's text/template as Prometheus' rule files use it: parsing, execution, printing and functions, byte for byte."""

from alerts.templates.cursor import TemplateError
from alerts.templates.expansion import Surroundings, Template, expand

__all__ = ["Surroundings", "Template", "TemplateError", "expand"]
