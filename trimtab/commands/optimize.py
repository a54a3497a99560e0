"""`trimtab models optimize`: a faster or smaller variant of a version, measured beside it and gated."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from collectors.drift.inputs import opened
from collectors.drift.source import InputError, Source
from serving.artifacts.manifest import read_manifest
from serving.artifacts.variants import Comparison, Sample, compare, make_variant, measured, register_variant
from serving.errors import ServingError
from serving.optimize import Recipe
from serving.optimizing.layers import Fate
from serving.protocol.signature import Signature
from serving.registry import ModelVersion, Registry, newest
from trimtab.commands.options import echo_json, fail, with_json, with_settings
from trimtab.commands.registry import registry as registry_of
from trimtab.settings import Settings

_FEATURE = "feature."
_ROWS = 4096


@click.command(epilog="Example: trimtab models optimize flights --int8 --sample holdout.parquet --tolerance 0.02")
@click.argument("model")
@click.option(
    "--version", type=int,
    help="The version to start from; default: the stable one, else the newest that is no variant itself.",
)  # fmt: skip
@click.option(
    "--int8", is_flag=True,
    help="Linear layers computed in 8-bit integers, each row scaled by itself; convolutions, recurrent layers and "
    "embeddings only kept in them.",
)  # fmt: skip
@click.option("--bf16", is_flag=True, help="Linear layers, convolutions, LSTM and embeddings in bfloat16.")
@click.option(
    "--prune", type=float, default=0.0, metavar="SHARE", help="Take this share of the hidden units and channels out."
)
@click.option("--sparsity", type=float, default=0.0, metavar="SHARE", help="Zero this share of the weights; no faster.")
@click.option("--compile", is_flag=True, help="torch.compile in the server, while it warms up.")
@click.option(
    "--sample", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE",
    help="Rows to compare on (Parquet, CSV, Arrow), a column an input; default: the version's recorded example.",
)  # fmt: skip
@click.option(
    "--label", default="label", show_default=True, help="The sample's column with the true value, if it has it."
)
@click.option(
    "--tolerance", type=click.FloatRange(min=0), default=0.05, show_default=True,
    help="Largest difference of an output, as a share of its range on the sample; and of a score to its own.",
)  # fmt: skip
@with_settings
@with_json
def optimize(
    model: str, version: int | None, int8: bool, bf16: bool, prune: float, sparsity: float, compile: bool,
    sample: Path | None, label: str, tolerance: float, settings: Settings, as_json: bool,
) -> None:  # fmt: skip
    """Make a variant of a version and register it as a candidate, if it answers as the original does.

    Both are measured by turns on this machine. What was changed is listed, and what was left as it is, with the reason.
    Nothing is promoted: give it traffic with `models shadow` or `canary`.
    Exit status 2: the variant differs by more than the tolerance, and is not registered.
    """
    registry = registry_of(settings)
    architectures = tuple(settings.serving.architectures)
    try:
        recipe = Recipe(prune=prune, sparsity=sparsity, int8=int8, bf16=bf16, compile=compile)
        parent = _parent(registry, model, version)
        source = registry.artifact(parent)
        rows = None if sample is None else _sample(sample, Signature.of(read_manifest(source)), label)
        with tempfile.TemporaryDirectory(prefix="trimtab-variant-") as folder:
            _use_threads(settings.serving.torch_threads)
            fates = make_variant(source, Path(folder), recipe, rows, architectures=architectures)
            found = compare(source, Path(folder), rows, tolerance, architectures=architectures)
            made = None
            if found.refusal() is None:
                made = register_variant(registry, parent, Path(folder), recipe, found)
    except (ServingError, InputError, ValueError, OSError, pa.ArrowException) as error:
        fail(str(error))
    finally:
        registry.close()
    if as_json:
        echo_json(
            {"model": model, "parent": parent.version, "variant": recipe.name,
             "version": None if made is None else made.version, "layers": [asdict(fate) for fate in fates],
             "measured": measured(found)}
        )  # fmt: skip
    else:
        _show(model, parent, recipe, found)
        _show_layers(fates)
    if made is None:
        fail(f"not registered: {found.refusal()}", status=2)
    if not as_json:
        click.echo(
            f"registered as version {made.version}; give it traffic: trimtab models shadow {model} {made.version}"
        )


def _parent(registry: Registry, model: str, version: int | None) -> ModelVersion:
    if version is None:
        version = registry.alias(model, "stable")
    if version is not None:
        return registry.get(model, version)
    versions = registry.versions(model)
    if not versions:
        raise ValueError(f"model {model!r} is not in the registry; `trimtab models list` names those that are")
    return newest(versions)


def _use_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _sample(path: Path, signature: Signature, label: str) -> Sample:
    source = opened(path, str(path))
    if not isinstance(source, Source):
        raise ValueError(f"{path} is a profile; give the rows themselves")
    names = {name.removeprefix(_FEATURE): name for name in reversed(source.columns)}
    wanted = [column.name for place, column in enumerate(signature.inputs) if place not in signature.lengths]
    missing = [name for name in wanted if name not in names]
    if missing or not source.rows:
        raise ValueError(
            f"{path} has {source.rows} rows and no column for the inputs {missing}; it has {source.columns}"
        )
    table = source.read([*dict.fromkeys(names[name] for name in wanted), *({label} & set(source.columns))])
    if len(table) > _ROWS:
        table = table.take(np.sort(np.random.default_rng(0).choice(len(table), _ROWS, replace=False)))
    columns = signature.example({name: _values(table.column(names[name])) for name in wanted})
    return Sample(tuple(columns), _labels(table, label))


def _values(column: pa.ChunkedArray) -> list[Any]:
    found: list[Any] = column.to_pylist()
    return found


def _labels(table: pa.Table, label: str) -> Any:
    if label not in table.column_names:
        return None
    return np.asarray(pc.cast(table.column(label), pa.float64()).to_numpy(zero_copy_only=False), np.float64)


def _show(model: str, parent: ModelVersion, recipe: Recipe, found: Comparison) -> None:
    click.echo(f"{model} {parent.version} and its variant {recipe.name}")
    click.echo(f"{'':<26}{'original':>14}{'variant':>14}{'ratio':>8}")
    pairs = [
        (f"rows/s, batch of {before.rows}", before.rows_per_second, after.rows_per_second)
        for before, after in zip(found.original_speed, found.variant_speed, strict=True)
    ]
    pairs += [
        (f"processor µs/row, of {before.rows}", before.processor_seconds_per_row * 1e6,
         after.processor_seconds_per_row * 1e6)
        for before, after in zip(found.original_speed, found.variant_speed, strict=True)
    ]  # fmt: skip
    pairs.append(("bytes of weights", found.original_bytes, found.variant_bytes))
    pairs += [(name, before, found.variant_scores[name]) for name, before in found.original_scores.items()]
    for name, before, after in pairs:
        ratio = f"{after / before:.2f}" if before else "-"
        click.echo(f"{name:<26}{before:>14,.4g}{after:>14,.4g}{ratio:>8}")
    for apart in found.differences:
        click.echo(
            f"{apart.output}: differs by at most {apart.largest:.4g} ({apart.relative:.2%} of its range), "
            f"{apart.mean:.4g} on average, on {apart.rows} rows"
        )


def _show_layers(fates: Sequence[Fate]) -> None:
    for fate in fates:
        click.echo(f"{fate.step}: {fate}" if fate.changed else f"{fate.step} left as they are: {fate}")
