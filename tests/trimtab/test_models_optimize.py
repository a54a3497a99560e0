"""`trimtab models optimize`: a table of what was measured, a candidate, exit status 2 where it differs too much."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import Result

from serving import Input, Output, Registry, Signature, save_artifact

Trimtab = Callable[..., Result]


class Chance(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.ReLU(), torch.nn.Linear(64, 64))
        self.out = torch.nn.Linear(64, 1)

    def forward(self, amounts: torch.Tensor, carrier: torch.Tensor) -> torch.Tensor:
        given = torch.cat([amounts, carrier.to(torch.float32).unsqueeze(1)], 1)
        return torch.sigmoid(self.out(torch.relu(self.layers(given)))).squeeze(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with settings, a registered version of `chance` and a labelled sample."""
    folder = tmp_path_factory.mktemp("optimize")
    inputs = (Input.of("amounts", "FP32", shape=(3,)), Input.of("carrier", "BYTES", ["AA", "UA"]))
    signature = Signature(inputs, (Output("chance"),))
    save_artifact(folder / "made", Chance(), signature, {"amounts": [[0.1, 0.2, 0.3]], "carrier": ["AA"]})
    registry = Registry(f"sqlite:///{folder}/registry.db", folder / "artifacts")
    registry.register("chance", folder / "made", lineage={}, profile=None, metrics={})
    registry.close()
    rows = np.random.default_rng(0).standard_normal((200, 3)).astype(np.float32)
    carriers = pa.array(["AA", "UA", "??", None] * 50)
    table = {"feature.amounts": pa.array(rows.tolist()), "feature.carrier": carriers}
    pq.write_table(pa.table(table | {"label": (rows[:, 0] > 0).astype(np.int8)}), folder / "sample.parquet")
    (folder / "trimtab.toml").write_text(f'[trimtab]\ndata = "{folder}"\n')
    return folder


def run(trimtab: Trimtab, folder: Path, *options: object) -> Result:
    return trimtab("models", "optimize", "chance", "--settings", folder / "trimtab.toml", *options)


def test_a_variant_is_measured_on_a_sample_and_registered(trimtab: Trimtab, made: Path) -> None:
    result = run(trimtab, made, "--version", 1, "--int8", "--sample", made / "sample.parquet", "--json")

    assert result.exit_code == 0, result.output
    body = json.loads(result.stdout)
    assert (body["parent"], body["variant"], body["version"]) == (1, "int8", 2)
    assert body["measured"]["differences"][0]["rows"] == 200
    assert 0 < body["measured"]["differences"][0]["relative"] < 0.05
    assert set(body["measured"]["variant"]["scores"]) == {"log_loss"}
    shown = trimtab("models", "list", "--json", "--settings", made / "trimtab.toml")
    assert [row["lineage"].get("variant") for row in json.loads(shown.stdout)] == [None, "int8"]


def test_the_table_ends_with_what_was_changed_and_what_was_left_as_it_is(trimtab: Trimtab, made: Path) -> None:
    result = run(trimtab, made, "--version", 1, "--int8", "--sample", made / "sample.parquet")

    assert "\nint8: 1 linear layer (4,096 weights): weights and rows in int8" in result.stdout
    assert "\nint8 left as they are: 2 linear layers (320 weights): fewer than 4,096 weights" in result.stdout
    told = json.loads(run(trimtab, made, "--version", 1, "--prune", 0.2, "--tolerance", 9, "--json").stdout)["layers"]
    assert [(fate["step"], fate["kind"], fate["changed"]) for fate in told] == [
        ("prune", "linear layer", True), ("prune", "linear layer", False),
    ]  # fmt: skip


def test_a_variant_that_differs_too_much_ends_with_2_and_is_not_registered(trimtab: Trimtab, made: Path) -> None:
    result = run(
        trimtab, made, "--version", 1, "--sparsity", 0.9, "--sample", made / "sample.parquet", "--tolerance", 0.001
    )

    assert result.exit_code == 2
    assert "rows/s, batch of 64" in result.stdout
    assert "not registered: output 'chance' differs by" in result.stderr
    shown = json.loads(trimtab("models", "list", "--json", "--settings", made / "trimtab.toml").stdout)
    assert "sparse0.9" not in [row["lineage"].get("variant") for row in shown]


def test_without_a_version_a_variant_is_made_of_the_original_not_of_another_variant(
    trimtab: Trimtab, made: Path
) -> None:
    for options in (["--sparsity", 0.1], ["--sparsity", 0.2]):
        result = run(trimtab, made, *options, "--tolerance", 10, "--json")

        assert json.loads(result.stdout)["parent"] == 1


def test_a_variant_judged_on_a_few_rows_only_is_refused_with_the_advice_to_give_more(
    trimtab: Trimtab, made: Path
) -> None:
    result = run(trimtab, made, "--version", 1, "--sparsity", 0.9, "--tolerance", 0)

    assert result.exit_code == 2
    assert "give a sample of more" in result.stderr


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "nothing to do"),
        (["--int8", "--bf16"], "exclude each other"),
        (["--int8", "--version", "9"], "has no version 9"),
        (["--prune", "1.5"], "shares from 0 to below 1"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_line(
    trimtab: Trimtab, made: Path, options: list[str], complaint: str
) -> None:
    result = run(trimtab, made, *options)

    assert result.exit_code == 1
    assert complaint in result.stderr


def test_a_sample_without_an_input_is_refused(trimtab: Trimtab, made: Path, tmp_path: Path) -> None:
    pq.write_table(pa.table({"carrier": ["AA"]}), tmp_path / "other.parquet")

    result = run(trimtab, made, "--version", 1, "--int8", "--sample", tmp_path / "other.parquet")

    assert result.exit_code == 1
    assert "no column for the inputs ['amounts']" in result.stderr
