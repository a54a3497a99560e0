"""The documents of OpenSLO files as one set: any of them may name any other."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import yaml

from alerts.slo.nodes import Reader

VERSIONS = ("openslo/v1", "trimtab/v1")
KINDS = ("SLO", "SLI", "Service", "DataSource", "AlertPolicy", "AlertCondition", "AlertNotificationTarget")
METADATA = ("name", "displayName", "labels", "annotations")
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
_TOP = ("apiVersion", "kind", "metadata", "spec")


@dataclass(slots=True)
class Document:
    """One document, and the reader of its file, which takes what is wrong with it."""

    reader: Reader
    node: yaml.Node
    kind: str
    name: str
    title: str
    labels: dict[str, str]
    annotations: dict[str, tuple[str, yaml.Node]]
    spec: yaml.Node | None


@dataclass(slots=True)
class Documents:
    """All documents, by kind and name."""

    by_name: dict[tuple[str, str], Document] = field(default_factory=dict)

    def of_kind(self, *kinds: str) -> list[Document]:
        """Those of some kinds, in the order of the files."""
        return [document for document in self.by_name.values() if document.kind in kinds]

    def find(self, kind: str, name: str) -> Document | None:
        """The one of a kind that has a name."""
        return self.by_name.get((kind, name))

    def names_of(self, kind: str) -> str:
        """What a reference to a kind may name, in words."""
        names = [name for of, name in self.by_name if of == kind]
        return f"known are {', '.join(names)}" if names else f"there is no kind: {kind} in these files"

    def add(self, reader: Reader, node: yaml.Node) -> None:
        """Take a document up, with what is wrong with its head."""
        fields = reader.fields(node, "a document", _TOP)
        if not isinstance(node, yaml.MappingNode):
            return
        version = reader.text(fields.get("apiVersion"), "apiVersion")
        if version not in VERSIONS:
            wrong = f"got {version!r}" if version else "it is missing"
            reader.report(fields.get("apiVersion", node), f"apiVersion must be {' or '.join(VERSIONS)}: {wrong}")
        kind = reader.choice(fields.get("kind"), "kind", KINDS)
        if "kind" not in fields:
            reader.report(node, f"a document needs a kind: one of {', '.join(KINDS)}")
        metadata = reader.fields(fields.get("metadata"), "metadata", METADATA)
        name = reader.text(metadata.get("name"), "metadata.name")
        if not name:
            reader.report(fields.get("metadata", node), "a document needs metadata.name")
        elif not _NAME.match(name) or len(name) > 63:
            # Only an objective's becomes a part of rules; OpenSLO's own examples name policies otherwise.
            message = f"{name!r} is not a name: lower-case letters, digits and '-', at most 63, no '-' at either end"
            reader.report(metadata["name"], message, "error" if kind == "SLO" else "warning")
        labels: dict[str, str] = {}
        for label, (value, _) in reader.pairs(metadata.get("labels"), "metadata.labels").items():
            labels[re.sub(r"[^a-zA-Z0-9_]", "_", label)] = value
        if not kind or not name:
            return
        if (kind, name) in self.by_name:
            reader.report(metadata["name"], f"kind {kind} named {name!r} is there twice")
            return
        document = Document(
            reader=reader,
            node=node,
            kind=kind,
            name=name,
            title=reader.text(metadata.get("displayName"), "metadata.displayName"),
            labels=labels,
            annotations=reader.pairs(metadata.get("annotations"), "metadata.annotations"),
            spec=fields.get("spec"),
        )
        if document.spec is None and kind != "Service":
            reader.report(node, f"kind {kind} needs a spec")
        if kind == "DataSource":
            source = reader.fields(document.spec, "a DataSource's spec", ("description", "type", "connectionDetails"))
            if "type" in source and reader.text(source["type"], "type").lower() != "prometheus":
                reader.report(source["type"], "only data sources of type Prometheus can be read")
        self.by_name[kind, name] = document


def referred(
    known: Documents, document: Document, node: yaml.Node, ref: str, kind: str
) -> tuple[Reader, yaml.Node] | None:
    """The spec of an object that is named or stands inline, with the reader of its file."""
    reader = document.reader
    fields = reader.fields(node, f"an item of {kind}", (ref, *_TOP))
    if ref in fields:
        name = reader.text(fields[ref], ref)
        found = known.find(kind, name)
        if found is None or found.spec is None:
            reader.report(fields[ref], f"there is no {kind} named {name!r}: {known.names_of(kind)}")
            return None
        return found.reader, found.spec
    if "spec" not in fields:
        reader.report(node, f"give {ref}, or the {kind} inline with its spec")
        return None
    return reader, fields["spec"]
