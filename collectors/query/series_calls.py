"""The API's calls about series, labels and metric families."""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from starlette.requests import Request

from collectors.query.answers import TRUNCATED
from collectors.query.errors import ParseError, QueryError
from collectors.query.parameters import Parameters, bounds
from collectors.query.parse import parse_selector
from collectors.query.responses import Answer
from collectors.store import Matcher, SampleReader

Call = Callable[[Parameters, Request], Awaitable[Answer]]
InThread = Callable[[Callable[[], Any]], Awaitable[Any]]

_ESCAPE = re.compile(r"_([0-9a-fA-F]{1,6})_|__")


class SeriesCalls:
    """series, labels, label values and metadata of a reader."""

    def __init__(self, reader: SampleReader, in_thread: InThread) -> None:
        self._reader = reader
        self._in_thread = in_thread

    def both(self) -> list[tuple[str, Call]]:
        """Paths for GET and POST."""
        return [("/series", self.series), ("/labels", self.labels)]

    def gets(self) -> list[tuple[str, Call]]:
        """Paths for GET."""
        return [("/label/{name}/values", self.label_values), ("/metadata", self.metadata)]

    async def series(self, parameters: Parameters, request: Request) -> Answer:
        """Label sets of the selected series."""
        if not parameters.all("match[]"):
            raise QueryError("no match[] parameter provided", "bad_data")
        limit = parameters.limit()
        range_ms = bounds(parameters)
        selections = _selections(parameters)

        def look_up() -> list[dict[str, str]]:
            keys = {
                tuple(sorted(labels.items()))
                for matchers in selections
                for labels in self._reader.series(matchers, **range_ms)
            }
            return [dict(key) for key in sorted(keys)]

        return _limited(await self._in_thread(look_up), limit)

    async def labels(self, parameters: Parameters, request: Request) -> Answer:
        """Label names, of the selected series."""
        limit = parameters.limit()
        range_ms = bounds(parameters)
        look_up = functools.partial(_names, self._reader, range_ms)
        return _limited(await self._united(look_up, parameters), limit)

    async def label_values(self, parameters: Parameters, request: Request) -> Answer:
        """Values of a label in the selected series."""
        name = _unescaped(request.path_params["name"])
        limit = parameters.limit()
        range_ms = bounds(parameters)
        look_up = functools.partial(_values, self._reader, name, range_ms)
        return _limited(await self._united(look_up, parameters), limit)

    async def metadata(self, parameters: Parameters, request: Request) -> Answer:
        """Type, help and unit of metric families."""
        wanted = parameters.text("metric", "")
        limit = parameters.number("limit")
        per_metric = parameters.number("limit_per_metric")
        # A counter of OpenMetrics has its samples' name here; Prometheus has the family's, without `_total`.
        known = self._reader.metadata()
        if wanted not in known and f"{wanted}_total" in known:
            known = {wanted: known[f"{wanted}_total"]}
        found = {
            name: [{"type": item.type, "help": item.help, "unit": item.unit}]
            for name, item in known.items()
            if (not wanted or name == wanted) and per_metric != 0
        }
        return Answer(found if limit is None or limit < 0 else dict(list(found.items())[:limit]))

    async def _united(self, look_up: Callable[[tuple[Matcher, ...]], Iterable[str]], parameters: Parameters) -> Any:
        selections = _selections(parameters) or [()]
        return await self._in_thread(lambda: sorted({text for matchers in selections for text in look_up(matchers)}))


def _names(reader: SampleReader, range_ms: Mapping[str, int | None], matchers: tuple[Matcher, ...]) -> list[str]:
    return reader.label_names(matchers, **range_ms)


def _values(
    reader: SampleReader, name: str, range_ms: Mapping[str, int | None], matchers: tuple[Matcher, ...]
) -> list[str]:
    return reader.label_values(name, matchers, **range_ms)


def _selections(parameters: Parameters) -> list[tuple[Matcher, ...]]:
    try:
        found = [parse_selector(text) for text in parameters.all("match[]")]
    except ParseError as error:
        if str(error).endswith("must contain at least one non-empty matcher"):
            raise QueryError("match[] must contain at least one non-empty matcher", "bad_data") from error
        raise QueryError(f'invalid parameter "match[]": {error}', error.kind) from error
    for matchers in found:
        if all(matcher.matches("") for matcher in matchers):
            raise QueryError("match[] must contain at least one non-empty matcher", "bad_data")
    return found


def _unescaped(name: str) -> str:
    """A label name as a path has it: `U__` begins one whose other characters are written as `_HEX_`."""
    if not name.startswith("U__"):
        return name
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)) if match[1] else "_", name[3:])


def _limited(items: list[Any], limit: int | None) -> Answer:
    if limit is None or len(items) <= limit:
        return Answer(items)
    return Answer(items[:limit], (TRUNCATED,))
