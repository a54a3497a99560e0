"""Templates of alert labels and annotations, with what Prometheus puts around them: `$labels`, `$value`, `query`.

A failure never stops an alert: the text becomes `<error expanding template: …>`, in the words of Prometheus.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

from alerts.labels import Labels
from alerts.samples import Sample
from alerts.templates.builtins import BUILTINS
from alerts.templates.calls import REFLECTED, TEXT, Function, nil_pointer
from alerts.templates.cursor import TemplateError
from alerts.templates.evaluation import Execution
from alerts.templates.functions import FUNCTIONS
from alerts.templates.parsing import Tree, parse_template
from alerts.templates.values import Data, LabelMap, QueryResult, SamplePointer, Value

_PRELUDE = (
    "{{$labels := .Labels}}{{$externalLabels := .ExternalLabels}}{{$externalURL := .ExternalURL}}{{$value := .Value}}"
)
_FIXED = {**BUILTINS, **FUNCTIONS}
_BOUND = ("and", "or", "query", "now", "externalURL", "pathPrefix")


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a template can ask for besides its own result.

    `query` answers an expression at the evaluation's time; raises QueryError. `now` is unix seconds. `server_url` is
    what `externalURL` and `pathPrefix` give; None makes them fail, as they do in promtool.
    """

    query: Callable[[str], Sequence[Sample]]
    now: float = 0.0
    external_url: str = ""
    external_labels: Labels = ()
    server_url: str | None = ""


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed template."""

    name: str
    text: str
    trees: Mapping[str, Tree]

    @classmethod
    def parse(cls, text: str, name: str = "") -> Template:
        """Parse the template of a rule `name`; raises TemplateError."""
        return _parsed(f"__alert_{name}", _PRELUDE + text)

    def expand(self, labels: Labels, value: float, surroundings: Surroundings) -> str:
        """The text for a result with these labels (its name among them) and this value; raises TemplateError."""
        external = LabelMap(surroundings.external_labels)
        data = Data(LabelMap(labels), external, surroundings.external_url, value)
        try:
            execution = Execution(self.name, self.text, self.trees, _functions(surroundings))
            variables = (
                ("$labels", data.Labels),
                ("$externalLabels", external),
                ("$externalURL", data.ExternalURL),
                ("$value", value),
            )
            return execution.run(data, variables, len(variables))
        except RecursionError:
            raise TemplateError(f"template: {self.name}: exceeded maximum template depth") from None


@lru_cache(maxsize=4096)
def _parsed(name: str, text: str) -> Template:
    try:
        return Template(name, text, parse_template(name, text, lambda word: word in _FIXED or word in _BOUND))
    except RecursionError:
        raise TemplateError(f"template: {name}: nested too deeply") from None


def expand(text: str, labels: Labels, value: float, surroundings: Surroundings, *, name: str = "") -> str:
    """Parse and expand for the rule `name`; a failure is told in the text instead of raised."""
    if "{{" not in text:
        return text
    try:
        template = Template.parse(text, name)
    except TemplateError as error:
        return f"<error expanding template: error parsing template __alert_{name}: {error}>"
    try:
        return template.expand(labels, value, surroundings)
    except TemplateError as error:
        return f"<error expanding template: error executing template __alert_{name}: {error}>"


@lru_cache(maxsize=16)
def _functions(surroundings: Surroundings) -> Mapping[str, Function]:
    def query(expr: str) -> QueryResult:
        return QueryResult(SamplePointer(LabelMap(s.labels), s.value) for s in surroundings.query(expr))

    def url() -> str:
        return str(nil_pointer()) if surroundings.server_url is None else surroundings.server_url

    def unused(*values: Value) -> Value:
        raise AssertionError("and, or are evaluated argument by argument")

    return {
        **_FIXED,
        "and": Function(unused, (REFLECTED, REFLECTED), True),
        "or": Function(unused, (REFLECTED, REFLECTED), True),
        "query": Function(query, (TEXT,)),
        "now": Function(lambda: surroundings.now, ()),
        "externalURL": Function(url, ()),
        "pathPrefix": Function(lambda: urlsplit(url()).path, ()),
    }
