"""What the server pays to tell what it is given: events with features, profiles in their place, both, or nothing.

    python benchmarks/serving_probe.py [--seconds 3] [--rounds 3]

The servers and the client are those of `serving.py`; the model is an MLP 20-256-256-8 on one thread that takes twenty
FP32 inputs of one number each, as tables have them, and its reference has all of them and the eight outputs. The
collector discards what it gets, in a process of its own. All take turns; ratios are of one round, and their medians are
what counts.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
# Run as a script, this folder comes first on the path, and its files would pass for packages of their names.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != FOLDER]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402

from observability.profile import Profile  # noqa: E402
from serving import Input, Output, Registry, Signature, save_artifact  # noqa: E402

KINDS = {"off": (), "events": ("",), "probe": ("probe",), "both": ("both",)}
LOADS = ("json-row", "json-64", "binary-64")
COLUMNS = 20


class Tabular(torch.nn.Module):
    """Twenty columns into an MLP 20-256-256-8."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(COLUMNS, 256), torch.nn.ReLU(), torch.nn.Linear(256, 256), torch.nn.ReLU(),
            torch.nn.Linear(256, 8),
        )  # fmt: skip

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.layers(torch.stack(columns, 1))
        return out


def request(load: Any) -> tuple[bytes, dict[str, str]]:
    """Body and headers: a tensor a column, in place of the one of `serving.py`."""
    values = np.random.default_rng(1).normal(size=(COLUMNS, load.rows)).astype("<f4")
    tensors: list[dict[str, Any]] = [
        {"name": f"x{place}", "datatype": "FP32", "shape": [load.rows, 1]} for place in range(COLUMNS)
    ]
    if not load.binary:
        data = [tensor | {"data": column.tolist()} for tensor, column in zip(tensors, values, strict=True)]
        return json.dumps({"inputs": data}).encode(), {"Content-Type": "application/json"}
    tensors = [tensor | {"parameters": {"binary_data_size": 4 * load.rows}} for tensor in tensors]
    head = json.dumps({"inputs": tensors, "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"}
    return head + values.tobytes(), headers


def serving_benchmark() -> ModuleType:
    """`serving.py` beside this file, which is no package."""
    found = importlib.util.spec_from_file_location("serving_benchmark", FOLDER / "serving.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module
    found.loader.exec_module(module)
    return module


def reference(model: torch.nn.Module) -> Profile:
    """Of 5,000 rows like those that are sent."""
    drawn = np.random.default_rng(0).normal(size=(COLUMNS, 5_000)).astype(np.float32)
    outputs = model(*map(torch.from_numpy, drawn)).detach().double().numpy()
    features = {f"feature.x{place}": column.astype(float) for place, column in enumerate(drawn)}
    return Profile.of(pa.table(features | {f"prediction.y.{place}": outputs[:, place] for place in range(8)}))


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    given = options.parse_args(arguments)
    bench: Any = serving_benchmark()
    bench.request = request
    loads = [load for load in bench.LOADS if load.name in LOADS]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        torch.manual_seed(0)
        model, url = Tabular().eval(), f"sqlite:///{folder}/registry.db"
        inputs = tuple(Input.of(f"x{place}", "FP32") for place in range(COLUMNS))
        signature = Signature(inputs, (Output("y", shape=(8,)),))
        save_artifact(folder / "mlp", model, signature, {one.name: [0.1] for one in inputs})
        registry = Registry(url, folder / "artifacts")
        profile = reference(model).to_json()
        registry.register("mlp", folder / "mlp", lineage={}, profile=profile, metrics={})
        registry.set_alias("mlp", "stable", 1)
        registry.close()
        discarding = stack.enter_context(bench.running(sys.executable, "bare.py", "EMPTY"))
        servers = {}
        for kind, more in KINDS.items():
            collector = (discarding.url, *filter(None, more)) if more else ()
            command = (sys.executable, "ours.py", url, str(folder / "artifacts"), *collector)
            servers[kind] = stack.enter_context(bench.running(*command))
        scripts = {load.name: bench.script_of(load, folder) for load in loads}
        found: dict[tuple[str, str], list[Any]] = {}
        for _ in range(given.rounds):
            for load in loads:
                for kind, server in servers.items():
                    figure = bench.wrk(server, load, given.seconds, scripts[load.name])
                    found.setdefault((load.name, kind), []).append(figure)
    print("load        kind      requests/s  ÷ off   cpu µs/request  ÷ off   p99 ms")
    for load in loads:
        for kind in KINDS:
            rounds, off = found[load.name, kind], found[load.name, "off"]
            rate = statistics.median(one.rate / other.rate for one, other in zip(rounds, off, strict=True))
            cpu = statistics.median(one.cpu / other.cpu for one, other in zip(rounds, off, strict=True))
            figure = [statistics.median(getattr(one, name) for one in rounds) for name in ("rate", "cpu", "p99")]
            print(
                f"{load.name:<11} {kind:<8} {figure[0]:>11,.0f} {rate:>6.2f} {figure[1]:>16.0f} {cpu:>6.2f} "
                f"{figure[2]:>8.1f}"
            )


if __name__ == "__main__":
    main()
