"""`trimtab drift`: exit status, JSON, table, page and profile of real files."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from click.testing import Result
from rich.cells import cell_len
from rich.console import Console

from collectors.drift.compare import compare
from collectors.drift.terminal import rendered

Run = Callable[..., Result]


def made(rows: int, shift: float, seed: int) -> pa.Table:
    random = np.random.default_rng(seed)
    at = np.datetime64("2026-01-01", "s") + (np.arange(rows) * 4 * 86_400 // rows).astype("timedelta64[s]")
    moved = np.where(np.arange(rows) >= rows // 2, shift, 0.0)
    return pa.table(
        {
            "x": random.normal(size=rows) + moved,
            "kind": random.choice(["a", "b"], rows),
            "code": random.integers(0, 4, rows),
            "at": at,
        }
    )


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, Path]:
    same, moved = made(2000, 0.0, 3), made(2000, 2.0, 3)
    paths = {name: tmp_path / name for name in ("r.csv", "moved.parquet", "file.arrow", "stream.arrow", "lost.parquet")}
    pyarrow.csv.write_csv(same, paths["r.csv"])
    pyarrow.parquet.write_table(moved, paths["moved.parquet"])
    pyarrow.parquet.write_table(same.select(["x", "code", "at"]), paths["lost.parquet"])
    with pa.ipc.new_file(paths["file.arrow"], same.schema) as file:
        file.write_table(same)
    with pa.ipc.new_stream(paths["stream.arrow"], same.schema) as stream:
        stream.write_table(same)
    return paths


def test_the_column_that_moved_is_named_first_and_the_status_is_one(trimtab: Run, tables: dict[str, Path]) -> None:
    found = trimtab("drift", tables["r.csv"], tables["moved.parquet"])

    lines = found.stdout.splitlines()
    assert found.exit_code == 1
    assert lines[0].startswith("DRIFT: 1 of 4 columns drifted; 2,000 rows against 2,000")
    assert lines[3].split()[:2] == ["x", "DRIFTED"]
    assert any(block in lines[3] for block in "▃▄▅▆▇█")
    assert found.stdout.count(" ok ") == 3


def test_json_is_the_documented_shape(trimtab: Run, tables: dict[str, Path]) -> None:
    found = json.loads(trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--json").stdout)

    assert found["rows"] == {"reference": 2000, "current": 2000}
    assert {"columns", "drifted_share", "drifted", "seconds"} <= set(found)
    assert found["drifted_share"] == 0.25
    assert found["drifted"] is True
    numbers, categories = found["columns"]["x"], found["columns"]["kind"]
    shared = {"type", "missing", "psi", "js_distance", "hellinger", "method", "score", "threshold", "drifted"}
    assert shared | {"ks", "ks_pvalue", "wasserstein"} <= set(numbers)
    assert shared | {"chi2_pvalue"} <= set(categories)
    assert "chi2_pvalue" not in numbers
    assert "ks" not in categories
    assert (numbers["type"], categories["type"], found["columns"]["at"]["type"]) == (
        "numeric", "categorical", "datetime",
    )  # fmt: skip
    assert numbers["missing"] == {"reference": 0, "current": 0}


@pytest.mark.parametrize("current", ["file.arrow", "stream.arrow"])
def test_both_formats_of_arrow_are_read(trimtab: Run, tables: dict[str, Path], current: str) -> None:
    found = trimtab("drift", tables["r.csv"], tables[current])

    assert found.exit_code == 0
    assert found.stdout.startswith("no drift: no column drifted")


def test_a_column_that_vanished_is_a_finding(trimtab: Run, tables: dict[str, Path]) -> None:
    found = trimtab("drift", tables["r.csv"], tables["lost.parquet"])

    assert found.exit_code == 1
    assert found.stdout.startswith("DRIFT: 1 column is gone: kind; 2,000 rows")
    assert "Only in the reference: kind" in found.stdout


def test_drift_in_parts_alone_is_the_first_that_is_said(trimtab: Run, tmp_path: Path) -> None:
    drawn = np.random.default_rng(1).normal(size=(2, 4_000))
    place = np.arange(4_000) % 4
    before = {"x": drawn[0], "place": place.astype(str)}
    now = {"x": drawn[1] + np.array([0.7, -0.7, 0, 0])[place] * 0.5, "place": place.astype(str)}
    for name, columns in (("r.parquet", before), ("c.parquet", now)):
        pa.parquet.write_table(pa.table(columns), tmp_path / name)

    found = trimtab(
        "drift", tmp_path / "r.parquet", tmp_path / "c.parquet", "--by", "place", "--html", tmp_path / "d.html",
        "--threshold", "0.05",
    )  # fmt: skip

    assert found.exit_code == 1
    said = "DRIFT in parts: 2 of 4 values of place drifted; of the whole, no column drifted; 4,000 rows"
    assert found.stdout.startswith(said)
    assert said in (tmp_path / "d.html").read_text()


def test_the_table_fits_into_120_columns(trimtab: Run, tmp_path: Path) -> None:
    random, long = np.random.default_rng(0), "a_column_of_which_the_name_is_long_" * 3
    before = {long: random.normal(size=500), "text": [str(value) for value in random.normal(size=500)]}
    now = {long: np.where(random.random(500) < 0.5, np.inf, before[long]), "text": ["?"] * 250 + before["text"][250:]}
    for name, columns in (("r.parquet", before), ("c.parquet", now)):
        pa.parquet.write_table(pa.table(columns), tmp_path / name)

    for method in ("auto", "evidently"):
        found = trimtab(
            "drift", tmp_path / "r.parquet", tmp_path / "c.parquet", "--method", method,
            "--kinds", "text=numeric",
        )  # fmt: skip

        assert max(map(len, found.stdout.splitlines())) <= 120
        assert "text: " in found.stdout
        assert "250 values of the current table are not numbers" in " ".join(found.stdout.split())


@pytest.mark.parametrize("width", [50, 60, 80, 100])
def test_names_and_verdicts_have_room_in_a_narrow_terminal(width: int) -> None:
    random, name = np.random.default_rng(0), "flipper_length_mm"
    before = {name: random.normal(size=500), "種類": [f"k{value}" for value in random.integers(0, 5, 500)]}
    written = io.StringIO()
    console = Console(file=written, width=width)

    console.print(rendered(compare(before, {**before, name: before[name] + 2}), width))

    lines = written.getvalue().splitlines()
    assert any(line.startswith(f"{name}  DRIFTED ") for line in lines)
    assert any(line.startswith("種類 ") and " ok " in line for line in lines)
    assert any("█" in line for line in lines) == (width >= 60)
    assert ("show also PSI" in written.getvalue()) == (width < 100)
    assert all(cell_len(line) <= width for line in lines)


def test_an_unexpected_error_is_one_line_unless_the_trace_is_asked_for(
    trimtab: Run, tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("of two\nlines")

    monkeypatch.setattr("trimtab.commands.drift.compare", broken)

    found = trimtab("drift", tables["r.csv"], tables["moved.parquet"])
    with pytest.raises(ZeroDivisionError):
        trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--traceback")

    assert (found.exit_code, found.stdout) == (2, "")
    assert found.stderr.startswith("Error: unexpected: ZeroDivisionError: of two lines; please report it")
    assert found.stderr.count("\n") == 1


def test_a_histogram_shows_the_bulk_and_not_the_outliers(trimtab: Run, tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=5000)
    pa.parquet.write_table(pa.table({"x": np.append(values, 1e6)}), tmp_path / "x.parquet")

    found = trimtab("drift", tmp_path / "x.parquet", tmp_path / "x.parquet").stdout

    assert sum(character in "▁▂▃▄▅▆▇█" for character in found) >= 28


def test_a_saved_profile_stands_for_the_reference(trimtab: Run, tables: dict[str, Path], tmp_path: Path) -> None:
    profile = tmp_path / "january.json"

    saved = trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--save-profile", profile, "--json")
    found = trimtab("drift", profile, tables["moved.parquet"], "--json")

    first, second = json.loads(saved.stdout), json.loads(found.stdout)
    assert (saved.exit_code, found.exit_code) == (1, 1)
    assert (first["mode"], second["mode"]) == ("exact", "profile")
    assert second["columns"]["x"]["score"] == pytest.approx(first["columns"]["x"]["score"], abs=1e-12)
    assert second["columns"]["x"]["ks_error"] >= 0


def test_parts_are_printed_worst_first_and_windows_with_since_when(trimtab: Run, tables: dict[str, Path]) -> None:
    found = trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--by", "code", "--window", "1d", "--time", "at")

    assert found.exit_code == 1
    assert "code (worst first)" in found.stdout
    assert "2026-01-03T00:00:00Z" in found.stdout
    assert "x has been drifting since 2026-01-03T00:00:00Z" in found.stdout


def test_options_reach_the_comparison(trimtab: Run, tables: dict[str, Path]) -> None:
    def run(*options: str) -> dict[str, Any]:
        answer = trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--json", *options)
        found: dict[str, Any] = json.loads(answer.stdout)
        return {**found, "status": answer.exit_code}

    assert list(run("--columns", "x,kind", "--columns", "code")["columns"]) == ["x", "kind", "code"]
    assert run("--kinds", "code=categorical")["columns"]["code"]["type"] == "categorical"
    assert run("--method", "psi", "--columns", "x")["columns"]["x"]["threshold"] == 0.25
    assert run("--method", "ks", "--columns", "x", "--alpha", "0.001")["columns"]["x"]["threshold"] == 0.001
    assert run("--threshold", "5")["status"] == 0
    assert run("--mode", "profile")["mode"] == "profile"
    evidently = run("--method", "evidently")
    assert evidently["columns"]["x"]["method"] == "Wasserstein distance (normed)"
    assert (evidently["drifted_share"], evidently["drifted"], evidently["status"]) == (pytest.approx(1 / 3), False, 0)


def test_the_page_holds_everything_and_loads_nothing(trimtab: Run, tables: dict[str, Path], tmp_path: Path) -> None:
    page = tmp_path / "drift.html"

    trimtab("drift", tables["r.csv"], tables["moved.parquet"], "--html", page, "--by", "kind")

    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.index("<h2>x ") < text.index("<h2>kind ")
    assert text.count("<svg") == 4
    names = text[text.index("<h2>kind ") :].partition("</svg>")[0]
    assert sorted(re.findall(r"<text[^>]*middle[^>]*>([^<]+)", names)) == ["a", "b"]
    assert "prefers-color-scheme: dark" in text
    assert "By kind, worst first" in text
    assert not {"<script", "src=", "http://", "https://", "@import"} & set(text.split("<style>")[0].split())
    assert "<script" not in text
    assert "http" not in text
    assert len(text) < 60_000


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("r.csv", "bad.parquet"), "bad.parquet is not readable Parquet"),
        (("r.csv", "none.csv"), "none.csv does not exist"),
        (("r.csv", "zero.csv"), "zero.csv is empty"),
        (("r.csv", "zero.csv", "--mode", "exact"), "zero.csv is empty"),
        (("zero.csv", "r.csv", "--mode", "profile"), "zero.csv is empty"),
        (("r.csv", "file.arrow", "--threshold", "-1"), "must be positive"),
        (("r.csv", "latin.csv"), "latin.csv is not UTF-8: byte 0xe9"),
        (("r.csv", "file.arrow", "--columns", "nosuch"), "'nosuch' is not in the reference"),
        (("r.csv", "file.arrow", "--columns", ","), "no column is named to compare: there are x"),
        (("r.csv", "file.arrow", "--by", "nosuch"), "no column 'nosuch'"),
        (("r.csv", "file.arrow", "--window", "1d"), "--window 1d --time COLUMN"),
        (("r.csv", "file.arrow", "--window", "soon", "--time", "at"), "not a length of time"),
        (("r.csv", "file.arrow", "--window", "1d", "--time", "kind"), "no times to make windows from"),
        (("r.csv", "file.arrow", "--kinds", "code"), "give NAME=KIND"),
        (("r.csv", "file.arrow", "--evidently"), "give --html FILE"),
        (("r.csv", "file.arrow", "--html", "no/such/folder/x.html"), "there is no folder"),
        (("r.csv", "file.arrow", "--save-profile", "no/such/p.json"), "there is no folder"),
        (("r.csv", "file.arrow", "--save-profile", "r.csv"), "is one of the tables"),
        (("r.csv", "file.arrow", "--html", "file.arrow"), "is one of the tables"),
        (("r.csv", "file.arrow", "--method", "ks", "--threshold", "2"), "a p-value, must be below 1"),
        (("r.csv", "file.arrow", "--threshold", "inf"), "must be finite"),
    ],
)
def test_what_cannot_be_compared_has_a_status_and_a_line_of_its_own(
    trimtab: Run, tables: dict[str, Path], tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "bad.parquet").write_text("no table")
    (tmp_path / "zero.csv").touch()
    (tmp_path / "latin.csv").write_bytes(b"x,kind\n1,caf\xe9\n")
    given = [tmp_path / word if "." in word else word for word in arguments]

    found = trimtab("drift", *given)

    assert found.exit_code == 2
    assert words in found.stderr
    assert found.stderr.startswith("Error: ")
    assert found.stdout == ""


def test_progress_is_shown_on_a_terminal_only(tables: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "trimtab", "drift", str(tables["r.csv"]), str(tables["moved.parquet"]), "--json"]
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm"}
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment)
    os.close(theirs)
    shown = b""
    while True:
        try:
            block = os.read(ours, 4096)
        except OSError:
            break
        if not block:
            break
        shown += block
    output = child.communicate(timeout=60)[0]
    os.close(ours)

    assert child.returncode == 1
    assert json.loads(output)["drifted"] is True
    assert b"columns" in shown


def test_what_is_written_to_nobody_keeps_its_status(tables: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "trimtab", "drift", str(tables["r.csv"]), str(tables["file.arrow"])]
    reading, writing = os.pipe()
    os.close(reading)
    gone = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(writing)
    with Path("/dev/full").open("wb") as full:
        no_room = subprocess.run([*command, "--json"], stdout=full, stderr=subprocess.PIPE, timeout=60, check=False)
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    letters = subprocess.run(command, capture_output=True, env=narrow, timeout=60, check=False)

    assert (gone.returncode, gone.stderr) == (0, b"")
    assert no_room.returncode == 2
    assert no_room.stderr.startswith(b"Error: the answer cannot be written: No space left")
    assert no_room.stderr.count(b"\n") == 1
    assert (letters.returncode, letters.stderr) == (0, b"")
    assert letters.stdout.startswith(b"no drift: ")


def test_a_name_cannot_steer_the_terminal(trimtab: Run, tmp_path: Path) -> None:
    names = ["\x1b[31mred", "two\nlines", "[bold]x[/bold]"]
    for file, names_here in (("r", [*names, "\x1bgone"]), ("c", [*names, "\x1bnew"])):
        rows = pa.table({name: np.arange(100.0) + (file == "c") * 500 for name in names_here})
        pyarrow.parquet.write_table(
            rows.append_column("[b]by", pa.array(["\x1b[2Ja"] * 100)), tmp_path / f"{file}.parquet"
        )

    found = trimtab("drift", tmp_path / "r.parquet", tmp_path / "c.parquet", "--by", "[b]by")

    assert found.exit_code == 1
    assert "\x1b" not in found.stdout
    assert "two\ufffdlines" in found.stdout
    assert "[bold]x[/bold]" in found.stdout
    assert "[b]by (worst first)" in found.stdout


def test_an_interrupted_comparison_is_no_drift(
    trimtab: Run, tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trimtab.commands.drift.compare", interrupted)

    found = trimtab("drift", tables["r.csv"], tables["moved.parquet"])

    assert (found.exit_code, found.stdout, found.stderr) == (130, "", "Error: interrupted\n")


@pytest.mark.slow
def test_evidentlys_report_is_written_beside_ours(trimtab: Run, tables: dict[str, Path], tmp_path: Path) -> None:
    found = trimtab(
        "drift", tables["r.csv"], tables["moved.parquet"], "--columns", "x,kind", "--html", tmp_path / "d.html",
        "--evidently",
    )  # fmt: skip

    assert found.exit_code == 1, found.stderr
    assert (tmp_path / "d.html").exists()
    page = (tmp_path / "d.evidently.html").read_text()
    assert "Drift is detected" in page or "Dataset Drift" in page
    assert "kind" in page
