"""Drift and performance on a year of real flights from New York (336,776 rows, CC0), labels hours late.

    pip install 'trimtab[demo,dev]'
    OMP_NUM_THREADS=1 python benchmarks/flights_drift.py [--cache FOLDER] [--hours N] [--streams N]

1. Every hour as a random draw of as many reference rows: how often the calibrated rule and PSI > 0.1 alarm.
2. What has shifted by month, features and label, beyond what the reference's own days differ by.
3. Predictions and labels as they came, late, twice and corrected: every window against one pass over its rows.
4. A feature that changes its meaning at a known moment: found after how many labels, false alarms before, and what
   retraining on the labels since the alarm brings back. Rows are draws from days that the model has not seen; the real
   year is no such experiment: its ranking quality does not decay once the reference shares no day with training.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score

from collectors.drift import ColumnDrift, DriftThresholds, judge
from collectors.drift.calibration import Calibration
from collectors.drift.detector import DetectorSettings, EDetector
from collectors.performance import JoinSettings, LabelJoin
from collectors.scores import LabelledWindows, Scored, classification_scores
from observability.events import event_batch, label_batch
from observability.profile import Profile
from trimtab.demo import flights

Floats = npt.NDArray[np.float64]

REFERENCE = ("2013-01-01", "2013-03-01")
TRAINING, UNSEEN = ("2013-01-01", "2013-02-15"), ("2013-02-15", "2013-04-01")
ALARMS_ALLOWED = 0.02
DAY = 86_400.0
BLOCK_DAYS = 10
ANY_SIZE = DriftThresholds(min_rows=1)
ONSET, HORIZON, RETRAINING = 5_000, 20_000, 10_000


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--cache", type=Path, help="a folder that keeps the joined table for the next run")
    arguments.add_argument("--hours", type=int, default=1_000, help="hours of the year that are drawn, at most")
    arguments.add_argument("--streams", type=int, default=40, help="streams with injected drift")
    options = arguments.parse_args()
    table = flights.load_flights(options.cache)
    features = table.select([*flights.FEATURES, flights.LABEL, flights.GROUP])
    parts = (
        lambda: hours(table, features, options.hours),
        lambda: months(features),
        lambda: joined(table),
        lambda: lost(table, options.streams),
    )
    for part in parts:
        began = time.process_time()
        part()
        print(f"({time.process_time() - began:.1f} CPU s)\n", flush=True)


def between(table: pa.Table, span: tuple[str, str]) -> pa.Table:
    """The flights of the days from the first up to the second."""
    day = table.column(flights.GROUP)
    return table.filter(pc.and_(pc.greater_equal(day, span[0]), pc.less(day, span[1])))


def alarmed(verdicts: dict[str, ColumnDrift]) -> bool:
    """Whether the calibrated rule finds any column beyond its threshold."""
    return any(one.score >= one.threshold or one.missing_changed for one in verdicts.values())


def hours(table: pa.Table, features: pa.Table, most: int) -> None:
    """Draws of the size of each real hour, from one half of the reference's rows, against a profile of the other."""
    reference = between(features, REFERENCE).select(list(flights.FEATURES))
    generator = np.random.default_rng(0)
    order = generator.permutation(reference.num_rows)
    known, drawn = reference.take(order[: len(order) // 2]), reference.take(order[len(order) // 2 :])
    profile = Profile.of(known)
    epoch_hours = table.column("scheduled").cast(pa.int64()).to_numpy() // (3_600 * 10**9)
    sizes = generator.permutation(np.unique(epoch_hours, return_counts=True)[1])[:most]
    calibrated = live = naive = 0
    for size in sizes.tolist():
        window = profile.empty().updated(drawn.take(generator.integers(0, drawn.num_rows, size)))
        verdicts = judge(profile, window, ANY_SIZE)
        calibrated += alarmed(verdicts)
        live += any(one.drifted for one in verdicts.values())
        naive += any(one.psi > 0.1 for one in verdicts.values())
    count = len(sizes)
    print(f"1. {count} hours, each a random draw of its size (median {np.median(sizes):.0f}) from the reference")
    print(
        f"   any column alarms: calibrated {calibrated / count:.2%} (limit {ALARMS_ALLOWED:.0%}), "
        f"the live rule with its minimum effect {live / count:.2%}, PSI > 0.1 {naive / count:.1%}"
    )


def months(features: pa.Table) -> None:
    """Each later month against January and February, by sampling alone and against what its own ten days differ by."""
    names = [*flights.FEATURES, flights.LABEL]
    place = features.schema.get_field_index(flights.LABEL)
    words = pc.if_else(pc.equal(features.column(place), 1.0), "late", "in time")
    features = features.set_column(place, flights.LABEL, words)
    reference = between(features, REFERENCE)
    profile = Profile.of(reference.select(names))
    days = sorted(set(reference.column(flights.GROUP).to_pylist()))
    groups = [days[start : start + BLOCK_DAYS] for start in range(0, len(days), BLOCK_DAYS)]
    in_group = [pc.is_in(reference.column(flights.GROUP), pa.array(group)) for group in groups]
    blocks = [profile.empty().updated(reference.filter(chosen).select(names)) for chosen in in_group]
    calibration = Calibration.of(blocks)
    print(
        "2. months against January and February: scores over the threshold of a minimum effect and chance; * where the "
        f"change is also\n   beyond what {len(blocks)} blocks of {BLOCK_DAYS} days of the reference differ by"
    )
    base = _late(reference)
    print(f"   {'month':<7}{'late':>7}{'(was)':>8}{'label':>8}   features that drifted")
    for month in range(3, 13):
        span = (f"2013-{month:02}-01", f"2013-{month + 1:02}-01" if month < 12 else "2014-01-01")
        rows = between(features, span)
        window = profile.empty().updated(rows.select(names))
        verdicts, seasonal = judge(profile, window), judge(profile, window, calibration=calibration)
        told = {
            name: f"{one.score / one.threshold:.1f}{'*' if seasonal[name].score >= seasonal[name].threshold else ''}"
            for name, one in verdicts.items()
        }
        beyond = [name for name, one in verdicts.items() if name != flights.LABEL and one.score >= one.threshold]
        beyond.sort(key=lambda name: -verdicts[name].score / verdicts[name].threshold)
        found = ", ".join(f"{name} {told[name]}" for name in beyond)
        print(f"   {span[0][:7]}{_late(rows):7.1%}{base:8.1%}{told[flights.LABEL]:>8}   {found or 'none'}")


def _late(rows: pa.Table) -> float:
    return float(pc.mean(pc.equal(rows.column(flights.LABEL), "late").cast(pa.float64())).as_py())


def joined(table: pa.Table) -> None:
    """The year through the label join, an hour at a time, against one pass over the rows of each day."""
    known = table.filter(pc.is_valid(table.column("known_at")))
    ids = known.column("id").to_pylist()
    scheduled = known.column("scheduled").cast(pa.int64()).to_numpy()
    known_at = known.column("known_at").cast(pa.int64()).to_numpy()
    labels = known.column(flights.LABEL).to_numpy()
    predictions = np.random.default_rng(1).beta(1, 3, len(ids))
    generator = np.random.default_rng(2)
    # One in fifty labels is wrong at first and corrected a day later; one in twenty is delivered twice.
    wrong, twice = generator.random(len(ids)) < 0.02, generator.random(len(ids)) < 0.05
    rows = np.concatenate([np.arange(len(ids)), np.flatnonzero(wrong), np.flatnonzero(twice)])
    first_told = np.where(wrong, 1 - labels, labels)
    values = np.concatenate([first_told, labels[wrong], first_told[twice]])
    moments = np.concatenate([known_at, known_at[wrong] + int(DAY * 1e9), known_at[twice]])
    arrives = np.concatenate([known_at, known_at[wrong] + int(DAY * 1e9), known_at[twice] + 3 * int(DAY * 1e9)])
    windows = LabelledWindows(window_seconds=DAY)
    join = LabelJoin(JoinSettings(), windows)
    by_arrival = np.argsort(arrives, kind="stable")
    began = time.process_time()
    first, last = int(scheduled[0]), int(max(arrives))
    step, event, label = int(3_600e9), 0, 0
    for now in range(first, last + step, step):
        until = int(np.searchsorted(scheduled, now, side="right"))
        if until > event:
            part = slice(event, until)
            batch = event_batch(
                ids=ids[part], time_ns=scheduled[part], model="delay", version="1", features={},
                predictions={"p": predictions[part]},
            )  # fmt: skip
            join.add_predictions(pa.Table.from_batches([batch]))
            event = until
        until = int(np.searchsorted(arrives[by_arrival], now, side="right"))
        if until > label:
            chosen = by_arrival[label:until]
            names = [ids[row] for row in rows[chosen]]
            join.add_labels(pa.Table.from_batches([label_batch(names, "delay", values[chosen], moments[chosen])]))
            label = until
    known_windows = windows.windows("delay", "1")
    scored = {window.start: windows.scored(window) for window in known_windows}
    seconds = time.process_time() - began
    stale = len(windows.take_stale())
    days = scheduled // int(DAY * 1e9)
    exact = sum(
        scored.get(day * DAY) == Scored.of(predictions[days == day], labels[days == day])
        for day in np.unique(days).tolist()
    )
    late = np.median(known_at - scheduled) / 60e9
    print(
        f"3. {len(ids)} predictions, {len(rows)} labels a median of {late:.0f} min late ({wrong.sum()} corrected, "
        f"{twice.sum()} repeated), joined in {seconds:.1f} CPU s\n   {exact} of {len(np.unique(days))} daily windows "
        f"equal one pass over their rows bit for bit; {stale} windows had to be read again"
    )


def encoded(table: pa.Table) -> Floats:
    """The features as numbers, categories by their place in the sorted list of all."""
    columns = []
    for name in flights.FEATURES:
        values = table.column(name)
        if name in flights.CATEGORICAL:
            known = pa.array(sorted(set(values.to_pylist())))
            values = pc.index_in(values, known)
        columns.append(values.cast(pa.float64()).to_numpy())
    return np.column_stack(columns)


def moved(rows: Floats) -> Floats:
    """The same flights after the clock column has changed its meaning: twelve hours ahead, as in another time zone."""
    found = rows.copy()
    hour = flights.FEATURES.index("hour")
    found[:, hour] = (found[:, hour] + 12) % 24
    return found


def lost(table: pa.Table, streams: int) -> None:
    """Streams of squared errors that change at ONSET; the detector learns its base from other days than it watches."""
    labelled = table.filter(pc.is_valid(table.column(flights.LABEL)))
    inputs, days = encoded(labelled), np.array(labelled.column(flights.GROUP).to_pylist())
    labels = labelled.column(flights.LABEL).to_numpy()
    training = (days >= TRAINING[0]) & (days < TRAINING[1])
    unseen = (days >= UNSEEN[0]) & (days < UNSEEN[1])
    # Days of one stretch in turn: the reference and the watched rows share no day with training nor with each other.
    turn = np.unique(days, return_inverse=True)[1] % 2
    reference, watched = np.flatnonzero(unseen & (turn == 0)), np.flatnonzero(unseen & (turn == 1))
    model = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(inputs[training], labels[training])
    before, after = model.predict_proba(inputs)[:, 1], model.predict_proba(moved(inputs))[:, 1]
    auc = {word: roc_auc_score(labels[watched], p[watched]) for word, p in (("before", before), ("after", after))}
    base = (before[reference] - labels[reference]) ** 2
    settings = DetectorSettings(kind="bounded", alpha=1e-5)
    generator = np.random.default_rng(3)
    delays, false, again = [], 0, []
    for _ in range(streams):
        rows = generator.choice(watched, ONSET + HORIZON)
        scores = np.concatenate([before[rows[:ONSET]], after[rows[ONSET:]]])
        detector = EDetector(1, settings)
        detector.learn(generator.permutation(base))
        alarms = detector.update((scores - labels[rows]) ** 2)
        false += sum(alarm.index < ONSET for alarm in alarms)
        found = [alarm for alarm in alarms if alarm.index >= ONSET]
        delays.append(found[0].index - ONSET if found else np.inf)
        again.append(abs(found[0].since - ONSET) if found else np.inf)
    quiet = EDetector(1, settings)
    quiet.learn(base)
    rows = generator.choice(watched, 1_000_000)
    alarms = quiet.update((before[rows] - labels[rows]) ** 2)
    print(f"4. the hour moved by twelve after {ONSET} labels, {streams} streams of rows of unseen days")
    unhurt, hurt = ((p[watched] - labels[watched]) ** 2 for p in (before, after))
    shift = (hurt.mean() - unhurt.mean()) / unhurt.std()
    print(
        f"   ROC AUC {auc['before']:.3f}, with the moved hour {auc['after']:.3f}; squared error {unhurt.mean():.4f} -> "
        f"{hurt.mean():.4f},\n   {shift:.3f} deviations; on the reference's days, where the detector learns its base, "
        f"{base.mean():.4f}"
    )
    per_day = len(watched) / len(np.unique(days[watched]))
    median = float(np.median(delays))
    print(
        f"   found after a median of {median:.0f} labels ({median / per_day:.1f} days of flights), 95 % within "
        f"{np.quantile(delays, 0.95, method='higher'):.0f}; {int(np.isinf(delays).sum())} missed; onset told to within "
        f"{np.median(again):.0f} labels; {false} false alarms before it; {len(alarms)} in a million unchanged rows"
    )
    recovered(inputs, labels, generator, training, watched, (before, after))
    in_order = np.flatnonzero(days >= UNSEEN[0])
    daily = EDetector(1, DetectorSettings(kind="normal", alpha=1e-3, block=round(per_day)))
    daily.learn((before[reference] - labels[reference]) ** 2)
    errors = (before[in_order] - labels[in_order]) ** 2
    alarms = daily.update(errors)
    print(
        f"   the real year in its own order, a day a block: {len(alarms)} alarms in {len(errors) / per_day:.0f} days; "
        f"the error follows the share of late flights (shift of labels),\n   which is no decay: ROC AUC by month "
        + " ".join(f"{_auc(days, month, labels, before):.3f}" for month in range(3, 13))
    )


def _auc(days: npt.NDArray[np.str_], month: int, labels: Floats, scores: Floats) -> float:
    chosen = np.char.startswith(days, f"2013-{month:02}")
    return float(roc_auc_score(labels[chosen], scores[chosen]))


def recovered(
    inputs: Floats,
    labels: Floats,
    generator: np.random.Generator,
    training: npt.NDArray[np.bool_],
    watched: npt.NDArray[np.int64],
    scores: tuple[Floats, Floats],
) -> None:
    """A model fitted on as many labels as came since the alarm, of other days than it is then scored on."""
    rows = generator.choice(np.flatnonzero(training), RETRAINING, replace=False)
    model = HistGradientBoostingClassifier(max_iter=60, random_state=0).fit(moved(inputs[rows]), labels[rows])
    new = model.predict_proba(moved(inputs[watched]))[:, 1]
    found = [classification_scores(p, labels[watched]) for p in (scores[0][watched], scores[1][watched], new)]
    for name in ("roc_auc", "brier"):
        healthy, broken, mended = (each[name] for each in found)
        share = (mended - broken) / (healthy - broken)
        print(
            f"   {name}: {healthy:.4f} before, {broken:.4f} after, {mended:.4f} when retrained on {RETRAINING} labels "
            f"since: {share:.0%} of the loss is back"
        )
    base = (new - labels[watched]) ** 2
    detector = EDetector(1, DetectorSettings(kind="bounded", alpha=1e-5))
    order = generator.permutation(len(base))
    detector.learn(base[order[: len(order) // 2]])
    alarms = detector.update(base[order[len(order) // 2 :]])
    print(f"   {len(alarms)} alarms in the {len(order) - len(order) // 2} rows after that, with the base learned anew")


if __name__ == "__main__":
    main()
