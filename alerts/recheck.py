"""Makes every decision of the journal once more: on actions and verdicts, on releases, and on retrainings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from alerts.actions.journal import Entry
from alerts.actions.recheck import Rechecked
from alerts.actions.recheck import recheck as recheck_actions
from alerts.releases.recheck import replay_wrong
from alerts.retraining.recheck import attempt_wrong, end_wrong


def recheck(entries: Iterable[Entry]) -> list[Rechecked]:
    """Every decision among the rows that holds its inputs (those of older versions do not), made again."""
    return [found for entry in entries for found in _rechecked(entry)]


def _rechecked(entry: Entry) -> Iterator[Rechecked]:
    body = entry.body
    if entry.kind == "decided":
        yield from recheck_actions([entry])
        episode = (body.get("evidence") or {}).get("episode") or {}
        if "rests_on" in episode:
            yield Rechecked(entry.seq, entry.key, False, attempt_wrong(episode))
    elif entry.kind == "release" and "replay" in body:
        yield Rechecked(entry.seq, entry.key, False, replay_wrong(body))
    elif entry.kind == "episode" and "rests_on" in body:
        wrong = end_wrong(body) if body.get("event") == "ended" else attempt_wrong(body)
        yield Rechecked(entry.seq, entry.key, False, wrong)
