"""What a rule makes of the result of its expression: series under its name, or alerts with labels and annotations."""

from __future__ import annotations

from collections.abc import Sequence

from alerts.labels import Labels, labels_of
from alerts.rules import Rule
from alerts.samples import Sample
from alerts.states import Instance
from alerts.templates import Surroundings, expand


class EvaluationError(RuntimeError):
    """A rule's result cannot be used: too many elements, or two with the same labels."""


def instances(rule: Rule, vector: Sequence[Sample], surroundings: Surroundings) -> list[Instance]:
    """The alerts that a result makes: its labels without the name, the rule's, expanded, over them, and annotations."""
    found = []
    for sample in vector:

        def text(template: str, labels: Labels = sample.labels, value: float = sample.value) -> str:
            return expand(template, labels, value, surroundings, name=rule.name)

        own = {name: text(template) for name, template in rule.labels}
        labels = labels_of({**_unnamed(sample.labels), **own, "alertname": rule.name})
        annotations = tuple((name, text(template)) for name, template in rule.annotations)
        found.append(Instance(labels, annotations, sample.value))
    return found


def recorded(rule: Rule, vector: Sequence[Sample]) -> list[Sample]:
    """The series that a recording rule makes of a result; EvaluationError if two have the same labels."""
    samples = []
    seen: set[Labels] = set()
    for sample in vector:
        labels = labels_of({**dict(sample.labels), **dict(rule.labels), "__name__": rule.name})
        if labels in seen:
            raise EvaluationError(
                "vector contains metrics with the same labelset after applying rule labels: "
                f"{dict(labels)}; aggregate the expression so that one is left"
            )
        seen.add(labels)
        samples.append(Sample(labels, sample.value))
    return samples


def _unnamed(labels: Labels) -> dict[str, str]:
    return {name: value for name, value in labels if name != "__name__"}
