"""What the server pays to tell what it is given: events with features, profiles in their place, both, or nothing.

    python benchmarks/serving_probe.py [--seconds 3] [--rounds 3] [--vector]

The servers and the client are those of `serving.py`; the model is an MLP 20-256-256-8 on one thread that takes twenty
FP32 inputs of one number each, as tables have them, and its reference has all of them and the eight outputs; with
`--vector` it is the model of `serving.py`, whose one input stays with the events: only its outputs are counted. The
collector discards what it gets, in a process of its own. All take turns; ratios are of one round, and their medians are
what counts. Processor time is that of a request, what is counted and sent after the load included.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
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
# After a load: longer than until what waits is counted and sent.
SETTLE_SECONDS = 2.3


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
    features = {f"feature.x{place}": column.astype(float) for place, column in enumerate(drawn)}
    return Profile.of(pa.table(features | predictions(model(*map(torch.from_numpy, drawn)))))


def vector_reference(model: torch.nn.Module, width: int) -> Profile:
    """The same of a model with one input [rows, width]."""
    drawn = np.random.default_rng(0).normal(size=(5_000, width)).astype(np.float32)
    feature = pa.FixedSizeListArray.from_arrays(pa.array(drawn.reshape(-1)), width)
    return Profile.of(pa.table({"feature.x": feature} | predictions(model(torch.from_numpy(drawn)))))


def predictions(outputs: torch.Tensor) -> dict[str, Any]:
    """The columns of [rows, 8] outputs."""
    values = outputs.detach().double().numpy()
    return {f"prediction.y.{place}": values[:, place] for place in range(8)}


def made(bench: Any, folder: Path, *, vector: bool) -> Profile:
    """Saves the model's artifact in the folder; its reference."""
    torch.manual_seed(0)
    if vector:
        plain = bench.Mlp().eval()
        save_artifact(folder, plain, bench.SIGNATURE, {"x": [[0.1] * bench.FEATURES]})
        return vector_reference(plain, bench.FEATURES)
    bench.request = request
    model, inputs = Tabular().eval(), tuple(Input.of(f"x{place}", "FP32") for place in range(COLUMNS))
    save_artifact(folder, model, Signature(inputs, (Output("y", shape=(8,)),)), {one.name: [0.1] for one in inputs})
    return reference(model)


def measured(bench: Any, server: Any, load: Any, seconds: int, script: Path) -> Any:
    """A figure of `serving.py`, with what the server does after the load."""
    before = server.cpu()
    figure = bench.wrk(server, load, seconds, script)
    time.sleep(SETTLE_SECONDS)
    return replace(figure, cpu=(server.cpu() - before) / (figure.rate * seconds) * 1e6)


def main(arguments: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--seconds", type=int, default=3)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--vector", action="store_true", help="the model of serving.py, with one input of 64 numbers")
    given = options.parse_args(arguments)
    bench: Any = serving_benchmark()
    loads = [load for load in bench.LOADS if load.name in LOADS]
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        url = f"sqlite:///{folder}/registry.db"
        profile = made(bench, folder / "mlp", vector=given.vector).to_json()
        registry = Registry(url, folder / "artifacts")
        registry.register("mlp", folder / "mlp", lineage={}, profile=profile, metrics={})
        registry.set_alias("mlp", "stable", 1)
        registry.close()
        discarding = stack.enter_context(bench.running(sys.executable, "discarding.py"))
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
                    figure = measured(bench, server, load, given.seconds, scripts[load.name])
                    found.setdefault((load.name, kind), []).append(figure)
    print("load        kind      requests/s  ÷ off   cpu µs/request  ÷ off   p99 ms")
    for load in loads:
        for kind in KINDS:
            rounds, off = found[load.name, kind], found[load.name, "off"]
            rate = statistics.median(one.rate / other.rate for one, other in zip(rounds, off, strict=True))
            cpu = statistics.median(one.cpu / other.cpu for one, other in zip(rounds, off, strict=True))
            figure = [statistics.median(getattr(one, name) for one in rounds) for name in ("rate", "cpu", "p99")]
            print(
                f"{load.name:<11} {kind:<8} {figure[0]:>11,.0f} {rate:>6.2f} {figure[1]:>16.1f} {cpu:>6.2f} "
                f"{figure[2]:>8.1f}"
            )


if __name__ == "__main__":
    main()
