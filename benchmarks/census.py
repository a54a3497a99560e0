"""Performance estimated without labels on real census data, beside NannyML's numbers and the naive 'as before'.

The data (US census, Massachusetts, 2015 as reference and 2016-18 as production, with a LightGBM model's probabilities)
ships in the wheel of nannyml, which is read, not installed:

    pip download nannyml==0.13.1 --no-deps --dest .
    python benchmarks/census.py nannyml-0.13.1-py3-none-any.whl
"""

from __future__ import annotations

import argparse
import io
import time
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from collectors.scores import PerformanceEstimator, ScoreHistogram, classification_scores, score_counts

ROWS = 5_000
FOLDER = "nannyml/datasets/data/"
# NannyML 0.13.1's CBPE, run once on the same chunks: mean absolute errors, processor seconds to fit and estimate.
NANNYML = {"roc_auc": 0.00404, "f1": 0.00656, "accuracy": 0.00514, "precision": 0.01252, "recall": 0.00785}
NANNYML |= {"pr_auc": 0.00778}
NANNYML_SECONDS = 8.6
LIMITS = {"roc_auc": 0.0040, "f1": 0.0066}
MUST_PAGE, PAGES = {27, 28}, 4

Floats = npt.NDArray[np.float64]


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("wheel", type=Path, help="nannyml-0.13.1-py3-none-any.whl")
    options = arguments.parse_args()
    with zipfile.ZipFile(options.wheel) as wheel:
        reference, labels = _read(wheel, "employment_MA_reference.pq", "predicted_probability", "employed")
        (scores,) = _read(wheel, "employment_MA_analysis.pq", "predicted_probability")
        (truth,) = _read(wheel, "employment_MA_analysis_target.pq", "employed")
    report(_chunks(reference), _chunks(labels), _chunks(scores), _chunks(truth))


def report(reference: list[Floats], labels: list[Floats], scores: list[Floats], truth: list[Floats]) -> None:
    """Learns on the reference, estimates every chunk, then looks at the truth."""
    began = time.process_time()
    blocks = [ScoreHistogram.of(p, y) for p, y in zip(reference, labels, strict=True)]
    estimator = PerformanceEstimator.learnt(blocks)
    estimates = [estimator.estimate(score_counts(chunk)) for chunk in scores]
    seconds = time.process_time() - began
    realised = [classification_scores(p, y) for p, y in zip(scores, truth, strict=True)]
    usual = classification_scores(np.concatenate(reference), np.concatenate(labels))
    print(f"{len(scores)} chunks of {ROWS}; reference of {sum(map(len, reference))} rows in {len(blocks)} blocks")
    print(
        f"calibrated: {estimator.calibration.applied}, log loss lower by {estimator.calibration.gain:.5f} in "
        f"cross-validation; learnt and estimated in {seconds:.3f} CPU s (NannyML {NANNYML_SECONDS}: "
        f"{NANNYML_SECONDS / seconds:.0f} times; limit 1)"
    )
    print(f"\n{'score':<10}{'ours':>9}{'NannyML':>9}{'as before':>11}{'limit':>8}{'in interval':>13}  pages")
    paged: set[int] = set()
    for name in ("roc_auc", "f1", "accuracy", "precision", "recall", "pr_auc", "log_loss", "brier"):
        real = np.array([chunk[name] for chunk in realised])
        found = [chunk[name] for chunk in estimates]
        values = np.array([estimate.value for estimate in found])
        inside = np.mean([e.low <= value <= e.high for e, value in zip(found, real.tolist(), strict=True)])
        alerts = {place for place, estimate in enumerate(found) if estimate.alert}
        paged |= alerts
        known = f"{NANNYML[name]:9.5f}" if name in NANNYML else f"{'':>9}"
        limit = f"{LIMITS[name]:8.4f}" if name in LIMITS else f"{'':>8}"
        print(
            f"{name:<10}{np.abs(values - real).mean():9.5f}{known}{np.abs(usual[name] - real).mean():11.5f}{limit}"
            f"{inside:12.0%}   {sorted(alerts)}"
        )
    print(
        f"\nchunks that page on any score: {sorted(paged)} ({len(paged)}; limit {PAGES}; {sorted(MUST_PAGE)} in it:"
        f" {paged >= MUST_PAGE}); any of 16 univariate Jensen-Shannon rules: 38"
    )
    for name in ("roc_auc", "f1"):
        _recall(name, blocks, estimator, realised, paged)


def _recall(
    name: str,
    blocks: list[ScoreHistogram],
    estimator: PerformanceEstimator,
    realised: list[dict[str, float]],
    paged: set[int],
) -> None:
    """Which chunks' realised scores left the usual range, by two definitions of it, and how many of them were paged."""
    values = np.array([chunk[name] for chunk in realised])
    before = np.array([block.scores()[name].value for block in blocks])
    usual = estimator.usual[name]
    nannyml = np.abs(values - before.mean()) > 3 * before.std()
    ours = np.abs(values - usual.value) > estimator.sigmas * usual.error(ROWS)
    for word, left in (("mean ± 3 sd of the reference's chunks", nannyml), ("our band", ours)):
        chunks = np.flatnonzero(left).tolist()
        print(f"realised {name} left {word} in {chunks}: {len(paged & set(chunks))} of {len(chunks)} were paged")


def _read(wheel: zipfile.ZipFile, name: str, *columns: str) -> list[Floats]:
    table = pq.read_table(io.BytesIO(wheel.read(FOLDER + name)), columns=list(columns))
    return [table.column(column).to_numpy().astype(np.float64) for column in columns]


def _chunks(values: Floats) -> list[Floats]:
    return [values[start : start + ROWS] for start in range(0, len(values), ROWS)]


if __name__ == "__main__":
    main()
