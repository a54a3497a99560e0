"""Target groups of a scrape configuration as they are now: given ones, those of files, those that a URL answers."""

from __future__ import annotations

import asyncio
import glob
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import yaml

from collectors.scraping.client import Clients
from collectors.scraping.config import HttpDiscovery, ScrapeConfig, TargetGroup
from collectors.scraping.config_fields import StaticGroup
from collectors.scraping.config_text import without_password
from collectors.scraping.yaml_text import parsed_text

USER_AGENT = "Trimtab"
_JSON_TYPE = re.compile(r'application/json(;\s*charset=("utf-8"|utf-8))?', re.IGNORECASE)
_MAX_ANSWER_BYTES = 64 * 1024 * 1024

logger = logging.getLogger(__name__)


class Discovery:
    """The groups of one configuration. A file or URL that cannot be read keeps its last groups."""

    def __init__(self, config: ScrapeConfig, before: Iterable[Discovery] = ()) -> None:
        """`before`: what URLs have answered to these is known."""
        self._config = config
        self._files = GroupFiles([pattern for item in config.files for pattern in item.patterns])
        known = {item: groups for other in before for item, groups in other._answered.items()}
        self._answered: dict[HttpDiscovery, tuple[TargetGroup, ...]] = {
            item: known[item] for item in config.urls if item in known
        }

    def groups(self) -> list[TargetGroup]:
        """All groups now. Looks at the files' times, and reads those that changed."""
        answered = [group for item in self._config.urls for group in self._answered.get(item, ())]
        return [*self._config.groups, *self._files.groups(), *answered]

    async def run(self, clients: Clients) -> None:
        """Asks the URLs until cancelled, each at its own interval."""
        await asyncio.gather(*(self._poll(item, clients) for item in self._config.urls))

    async def refresh(self, source: HttpDiscovery, clients: Clients) -> None:
        """Asks one URL once."""
        try:
            self._answered[source] = await _asked(source, clients)
        except Exception as error:  # whatever went wrong, the next round asks again
            reason = f"{type(error).__name__}: {error}"
            url = without_password(source.url)
            logger.warning("the targets of %s (job %s) stay as they were: %s", url, self._config.job, reason)

    async def _poll(self, source: HttpDiscovery, clients: Clients) -> None:
        while True:
            await self.refresh(source, clients)
            await asyncio.sleep(source.refresh_ms / 1000)


@dataclass(frozen=True, slots=True)
class _ReadFile:
    stamp: tuple[int, int]
    groups: tuple[TargetGroup, ...]


class GroupFiles:
    """Groups from JSON and YAML files: `[{"targets": ["host:port"], "labels": {…}}]`, each read again when it changes.

    Half a written file must not take the monitoring down: a file that cannot be read keeps its last groups.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._patterns = tuple(patterns)
        self._read: dict[str, _ReadFile] = {}
        self._refused: dict[str, tuple[int, int]] = {}

    def groups(self) -> list[TargetGroup]:
        """The groups of all files now, in the order of their paths."""
        paths = sorted({path for pattern in self._patterns for path in glob.glob(pattern, recursive=True)})
        self._read = {path: known for path in paths if (known := self._current(path)) is not None}
        return [group for known in self._read.values() for group in known.groups]

    def _current(self, path: str) -> _ReadFile | None:
        known = self._read.get(path)
        try:
            status = Path(path).stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if (known is not None and known.stamp == stamp) or self._refused.get(path) == stamp:
                return known
            read = _ReadFile(stamp, _file_groups(path))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, yaml.YAMLError) as error:
            self._refused[path] = stamp
            logger.warning("the targets of %s stay as they were: %s", path, error)
            return known
        self._refused.pop(path, None)
        return read


def _file_groups(path: str) -> tuple[TargetGroup, ...]:
    body = Path(path).read_bytes()
    is_json = path.lower().endswith(".json")
    data = msgspec.json.decode(body) if is_json else parsed_text(body.decode()) or []
    return _groups(data, {"__meta_filepath": path}, strict=is_json)


def _groups(data: Any, labels: dict[str, str], *, strict: bool) -> tuple[TargetGroup, ...]:
    """msgspec.ValidationError, which is a ValueError, for what is no list of groups."""
    found = msgspec.convert(data, list[StaticGroup], strict=strict)
    return tuple(
        TargetGroup(tuple({"__address__": address} for address in item.targets), {**item.labels, **labels})
        for item in found
    )


async def _asked(source: HttpDiscovery, clients: Clients) -> tuple[TargetGroup, ...]:
    seconds = source.refresh_ms / 1000
    headers = {
        "Accept": "application/json",
        "User-Agent": USER_AGENT,
        "X-Prometheus-Refresh-Interval-Seconds": f"{seconds:g}",
    }
    client = clients.get(source.client)
    async with asyncio.timeout(seconds):
        answer = await client.get(source.url, headers=headers, extensions=dict(source.client.extensions))
    if answer.status_code != httpx.codes.OK:
        raise ValueError(f"server returned HTTP status {answer.status_code} {answer.reason_phrase}")
    kind = answer.headers.get("content-type", "").strip()
    if not _JSON_TYPE.fullmatch(kind):
        raise ValueError(f"unsupported content type {kind!r}")
    if len(answer.content) > _MAX_ANSWER_BYTES:
        raise ValueError(f"the answer has {len(answer.content)} bytes, more than {_MAX_ANSWER_BYTES}")
    return _groups(msgspec.json.decode(answer.content), {"__meta_url": source.url}, strict=True)
