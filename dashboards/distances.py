"""What the collector's drift windows say, by column and window: distances, verdicts, and why there is none. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from dashboards.charts.frame import Floats
from dashboards.readings import seconds_of
from dashboards.series import Series

Window = Mapping[str, Any]
_REASONS = {
    "drifted": "drifted",
    "within_threshold": "within threshold",
    "too_few_rows": "too few rows",
    "no_values": "no values",
    "no_reference_values": "no values in the reference",
}
_UNJUDGED = ("too_few_rows", "no_values", "no_reference_values")


@dataclass(frozen=True, slots=True)
class DriftMatrix:
    """Columns (predictions first, then the most drifted) by windows in order of their ends.

    `values` are PSI, NaN where the column was not judged; `words` say each cell for a reader.
    """

    columns: tuple[str, ...]
    ends: tuple[float, ...]
    values: Floats
    drifted: npt.NDArray[np.bool_]
    words: npt.NDArray[np.str_]
    threshold: float

    @property
    def most_drifted(self) -> str:
        """The feature that moved the most; the prediction where there is no feature."""
        return next((c for c in self.columns if not c.startswith("prediction.")), self.columns[0])


def verdict_words(scores: Mapping[str, Any]) -> str:
    """A column's verdict in a window, for people."""
    reason = str(scores.get("reason") or ("drifted" if scores.get("drifted") else "within_threshold"))
    return _REASONS.get(reason, reason.replace("_", " "))


def joint_series(windows: Sequence[Window]) -> tuple[Series, Series]:
    """How far the numeric columns together are, and from where that is drift, by the windows' ends.

    Windows without a joint part, or of too few rows for it, are left out.
    """
    judged = sorted((w for w in windows if w.get("joint")), key=lambda window: seconds_of(window["end"]))
    ends = np.array([seconds_of(window["end"]) for window in judged])
    found = [np.array([_number(w["joint"].get(name)) for w in judged], float) for name in ("mmd", "threshold")]
    return Series({"statistic": "mmd"}, ends, found[0]), Series({"statistic": "threshold"}, ends, found[1])


def joint_words(window: Window) -> str:
    """The verdict on a window's numeric columns together, for people."""
    joint = window.get("joint")
    if not joint:
        return "not judged in this window"
    error = _number(joint.get("reconstruction"))
    words = "drifted" if joint.get("drifted") else "within threshold"
    return words if np.isnan(error) else f"{words}; error by the reference's components {error:.2f} × its own"


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def is_judged(scores: Mapping[str, Any]) -> bool:
    """False where a distance exists but too few rows, or no values, stand behind it."""
    return scores.get("psi") is not None and scores.get("reason") not in _UNJUDGED


def drift_matrix(windows: Sequence[Window]) -> DriftMatrix:
    """The windows as a matrix."""
    ordered = sorted(windows, key=lambda window: seconds_of(window["end"]))
    found: dict[str, float] = {}
    threshold = 0.25
    for window in ordered:
        for name, scores in window["columns"].items():
            threshold = float(scores.get("threshold") or threshold)
            found[name] = max(found.get(name, 0.0), float(scores["psi"]) if is_judged(scores) else 0.0)
    columns = sorted(found, key=lambda name: (not name.startswith("prediction."), -found[name]))
    values = np.full((len(columns), len(ordered)), np.nan)
    drifted = np.zeros(values.shape, dtype=bool)
    words = np.full(values.shape, "not measured", dtype=object)
    for j, window in enumerate(ordered):
        for i, name in enumerate(columns):
            scores = window["columns"].get(name)
            if scores is None:
                continue
            values[i, j] = scores["psi"] if is_judged(scores) else np.nan
            drifted[i, j] = bool(scores.get("drifted"))
            psi = f"PSI {scores['psi']:.3f}, " if is_judged(scores) else "not judged: "
            words[i, j] = f"{psi}{verdict_words(scores)}, version {window['version']}"
    ends = tuple(seconds_of(window["end"]) for window in ordered)
    return DriftMatrix(tuple(columns), ends, values, drifted, words.astype(str), threshold)


def busiest(windows: Sequence[Window]) -> list[Window]:
    """One window an end, in order of time: that of the version with the most rows."""
    best: dict[float, Window] = {}
    for window in windows:
        end = seconds_of(window["end"])
        if end not in best or (window.get("rows") or 0) > (best[end].get("rows") or 0):
            best[end] = window
    return [best[end] for end in sorted(best)]


def newest_judged(windows: Sequence[Window]) -> Window:
    """The newest window in which any column was judged; where there is none, the newest."""
    judged = (window for window in reversed(windows) if any(map(is_judged, window["columns"].values())))
    return next(judged, windows[-1])


def trend(column: str, windows: Sequence[Window]) -> list[float]:
    """A column's PSI by window, of those that were judged: in one of a few rows chance alone would hide the rest."""
    scores = [window["columns"].get(column) or {} for window in windows]
    return [float(score["psi"]) for score in scores if is_judged(score)]
