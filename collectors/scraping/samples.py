"""A page's samples under the names that they are stored by: target labels, metric relabelling, limits."""

from __future__ import annotations

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from sys import intern
from typing import cast

from collectors.formats import Layout, LineExemplar, Lines
from collectors.scraping.config import Limits, ScrapeConfig
from collectors.scraping.relabel import is_label_name, relabelled
from collectors.store.values import STALE_NAN, Labels

Samples = list[tuple[Labels, float]]
_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*", re.ASCII)
# A sample further ahead of the clock than this is refused, as Prometheus does: one wrong clock must not end a series.
MAX_AHEAD_MS = 600_000


@dataclass(slots=True)
class Taken:
    """What a page gives the store: `series` and `values` at the scrape's time, `timed` at times that it says, ms."""

    series: list[Labels] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    timed: dict[int, Samples] = field(default_factory=dict)
    exemplars: list[tuple[Labels, LineExemplar]] = field(default_factory=list)
    scraped: int = 0
    """Samples of the page."""
    kept: int = 0
    """Samples after metric relabelling."""
    added: int = 0
    """Series that the last pages did not have."""
    ahead: int = 0
    """Samples refused because they are too far ahead."""
    error: str | None = None
    """Why nothing of the page may be stored."""


class SeriesCache:
    """The series of one target by the text of its pages: labels and relabelling are worked out once a series.

    Not thread-safe: one scrape of a target runs at a time.
    """

    def __init__(self) -> None:
        # None: relabelling dropped it.
        self.known: dict[Hashable, Labels | None] = {}
        self._tracked: dict[Hashable, Labels] = {}
        # Of the last page: pages of its layout have its list of keys, and so the same series.
        self._keys: Sequence[Hashable] | None = None
        self._found: list[Labels | None] = []
        self._kept = 0
        self.layout: Layout | None = None

    def take(self, lines: Lines, config: ScrapeConfig, target: Mapping[str, str], now_ms: int) -> Taken:
        """The samples of a page whose scrape has the time `now_ms`. `target` are the labels of the target's series.

        The counts are those that Prometheus reports (scrape/scrape.go), also of a page that is refused.
        """
        fresh, refused = self._name(lines.new, config, target)
        known = {**self.known, **fresh} if fresh else self.known
        end = lines.keys.index(refused[0]) if refused else len(lines.keys)
        again = lines.keys is self._keys
        found = self._found if again else [known[key] for key in lines.keys[:end]]
        kept = self._kept if again else end - found.count(None)
        taken = Taken(scraped=end + bool(refused), kept=kept)
        limit = config.limits.samples
        taken.added = min(sum(1 for labels in fresh.values() if labels is not None), limit or len(fresh))
        over = limit and taken.kept > limit
        taken.error = refused[1] if refused else lines.error or ("sample limit exceeded" if over else None)
        if taken.error is None:
            self._sort(taken, lines, config, found, now_ms)
            if not again:
                self._remember(lines.keys, known)
            self._keys, self._found, self._kept, self.layout = lines.keys, found, kept, lines.layout
        return taken

    def _name(
        self, new: Mapping[Hashable, dict[str, str]], config: ScrapeConfig, target: Mapping[str, str]
    ) -> tuple[dict[Hashable, Labels | None], tuple[Hashable, str] | None]:
        """The labels of series not known yet, up to the first that the page must not have."""
        fresh: dict[Hashable, Labels | None] = {}
        for key, labels in new.items():
            merged = with_target_labels(labels, target, config.honor_labels)
            final = relabelled(merged, config.metric_relabel)
            if final:
                refusal = _refusal(final, config.limits, config.legacy_names)
                if refusal:
                    return fresh, (key, refusal)
            # One text for all the series that have it.
            fresh[key] = {intern(name): intern(value) for name, value in final.items()} if final else None
        return fresh, None

    def _sort(
        self, taken: Taken, lines: Lines, config: ScrapeConfig, found: Sequence[Labels | None], now_ms: int
    ) -> None:
        times = lines.times if config.honor_timestamps else {}
        tracked: dict[Hashable, Labels] = {}
        if not times and taken.kept == len(found):
            taken.series, taken.values = list(cast("Sequence[Labels]", found)), list(lines.values)
        else:
            for index, labels in enumerate(found):
                if labels is None:
                    continue
                t_ms = times.get(index)
                if t_ms is None:
                    taken.series.append(labels)
                    taken.values.append(lines.values[index])
                elif t_ms > now_ms + MAX_AHEAD_MS:
                    taken.ahead += 1
                else:
                    taken.timed.setdefault(t_ms, []).append((labels, lines.values[index]))
                    if config.track_timestamps_staleness:
                        tracked[lines.keys[index]] = labels
        ended = [labels for key, labels in self._tracked.items() if key not in tracked]
        taken.series += ended
        taken.values += [STALE_NAN] * len(ended)
        self._tracked = tracked
        for exemplar in lines.exemplars:
            labels = found[exemplar.index] if exemplar.index < len(found) else None
            if labels is not None:
                t_ms = exemplar.t_ms if exemplar.t_ms is not None else times.get(exemplar.index, now_ms)
                taken.exemplars.append((labels, LineExemplar(exemplar.index, exemplar.labels, exemplar.value, t_ms)))

    def _remember(self, keys: Sequence[Hashable], known: dict[Hashable, Labels | None]) -> None:
        """Keeps the series of this page only: one that left it and comes again is new."""
        self.known = known if len(known) == len(keys) else {key: known[key] for key in keys}


def with_target_labels(labels: Mapping[str, str], target: Mapping[str, str], honor: bool) -> dict[str, str]:
    """A series' labels with its target's.

    With `honor` those of the page win, an empty value too: it takes the label off. Without, the target's win, and what
    the page says is kept as `exported_NAME`, or `exported_exported_NAME` where that is taken.
    """
    if honor:
        return {**target, **labels}
    merged = {**labels, **target}
    clashing = [name for name in target if labels.get(name)]
    for name in sorted(clashing, key=len):
        exported = f"exported_{name}"
        while merged.get(exported):
            exported = f"exported_{exported}"
        merged[exported] = labels[name]
    return merged


def _refusal(labels: Mapping[str, str], limits: Limits, legacy_names: bool) -> str | None:
    """Why a page with this series is refused; the messages are Prometheus'."""
    metric = labels.get("__name__")
    if not metric:
        return "missing metric name (__name__ label)"
    if legacy_names and not (_METRIC_NAME.fullmatch(metric) and all(map(is_label_name, labels))):
        return f"invalid metric name or label names: {dict(labels)}"
    short = metric[:50]
    if 0 < limits.labels < len(labels):
        return f"label_limit exceeded (metric: {short}, number of labels: {len(labels)}, limit: {limits.labels})"
    if not limits.label_name_length and not limits.label_value_length:
        return None
    for name, value in sorted(labels.items()):
        name_length, value_length = len(name.encode()), len(value.encode())
        if 0 < limits.label_name_length < name_length:
            return (
                f"label_name_length_limit exceeded (metric: {short}, label name: {name[:50]}, length: {name_length}, "
                f"limit: {limits.label_name_length})"
            )
        if 0 < limits.label_value_length < value_length:
            return (
                f"label_value_length_limit exceeded (metric: {short}, label name: {name[:50]}, "
                f'value: "{value[:50]}", length: {value_length}, limit: {limits.label_value_length})'
            )
    return None
