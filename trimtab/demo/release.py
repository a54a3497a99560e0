"""`python -m trimtab.demo.release`: registers v2: with a training–serving skew, or healthy."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import click

from serving.registry import Registry
from training.artifact import read_manifest, read_vocabularies, read_weights, write_artifact
from training.data import Encoding
from trimtab.commands.options import with_settings
from trimtab.demo.model import SkewedWeather, flight_delay_task
from trimtab.settings import Settings


@click.command()
@click.option("--healthy", is_flag=True, help="Leave the fault out.")
@with_settings
def release(healthy: bool, settings: Settings) -> None:
    """Register v2 and print its number."""
    task = flight_delay_task()
    registry = Registry(settings.registry_url, settings.artifacts)
    champion = registry.get(task.model, 1)
    source = registry.artifact(champion)
    manifest, weights = read_manifest(source), read_weights(source)
    vocabularies = read_vocabularies(manifest)
    # The weights bring their own means and deviations; these only give the buffers a shape.
    blank = dict.fromkeys(task.numeric, 0.0)
    network = task.network(Encoding(vocabularies, blank, dict.fromkeys(task.numeric, 1.0)))
    if healthy:
        weights = {name: value.bfloat16().to(value.dtype) for name, value in weights.items()}
    network.load_state_dict(weights)
    description = "v1 rounded to bfloat16" if healthy else "reads the weather as Celsius, but is served Fahrenheit"
    with tempfile.TemporaryDirectory() as folder:
        artifact = write_artifact(
            Path(folder) / "artifact",
            task,
            network if healthy else SkewedWeather(network),
            vocabularies,
            manifest["example"],
        )
        version = registry.register(
            task.model,
            artifact.folder,
            lineage={**champion.lineage, "parent": champion.version, "note": description},
            profile=registry.profile(task.model, champion.version),
            metrics=dict(champion.metrics),
        )
    print(json.dumps({"version": version.version, "description": description}))


if __name__ == "__main__":
    release()
