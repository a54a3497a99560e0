"""Counting tensors: `python benchmarks/probe.py`. Ours, numpy, torch's own operators, and what a model's step pays.

Processor seconds on one thread; rounds alternate, ratios are medians over the rounds. The peer for whole tensors is the
numpy engine (`Profile.updated`) on the same memory, the limit `numpy.sort` of it. A probe's share is what a batched
inference step costs with it over what it costs without. The GPU part runs where there is CUDA.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

# Run as a script, this folder comes first on the path, and its files would pass for packages of their names.
sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from observability.native import library  # noqa: E402
from observability.probe import Probe, profile_of_tensors  # noqa: E402
from observability.probe_kernels import count_with_numpy, count_with_torch  # noqa: E402
from observability.probe_state import views_of  # noqa: E402
from observability.profile import Profile  # noqa: E402

Step = Callable[[], object]


class Transformer(nn.Module):
    """Two encoder layers over the columns of a row as tokens."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(64 * columns, 1)

    def forward(self, values: Tensor) -> Tensor:
        return self.out(self.encode(self.embed(values.unsqueeze(2))).flatten(1))


def mlp(*sizes: int) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def models(columns: int) -> dict[str, nn.Module]:
    convolution = nn.Sequential(
        nn.Unflatten(1, (1, columns)),
        nn.Conv1d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.Conv1d(32, 64, 5, padding=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * columns, 1),
    )
    return {
        "MLP 64-64": mlp(columns, 64, 64, 1),
        "MLP 256-256-8": mlp(columns, 256, 256, 8),
        "MLP 256-256": mlp(columns, 256, 256, 1),
        "MLP 512-512": mlp(columns, 512, 512, 1),
        "MLP 1024-1024-512": mlp(columns, 1024, 1024, 512, 1),
        "convolutions 32-64": convolution,
        "transformer 2 x 64": Transformer(columns),
    }


def interleaved(steps: dict[str, Step], rounds: int, repeat: int, cuda: bool = False) -> dict[str, list[float]]:
    """Seconds of each step in each round: processor seconds here, wall seconds on a GPU.

    Each round has an order of its own, and a turn begins with a step that is not timed.
    """
    found: dict[str, list[float]] = {name: [] for name in steps}
    order, draw = list(steps.items()), random.Random(0)
    for step in steps.values():
        step()
    for _ in range(rounds):
        draw.shuffle(order)
        for name, step in order:
            if len(order) > 1:
                step()
            if cuda:
                torch.cuda.synchronize()
            started = time.perf_counter() if cuda else time.process_time()
            for _ in range(repeat):
                step()
            if cuda:
                torch.cuda.synchronize()
            found[name].append(((time.perf_counter() if cuda else time.process_time()) - started) / repeat)
    return found


def ratio(of: list[float], to: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(of, to, strict=True))


def whole_tensors(rows: int, rounds: int) -> None:
    draw = np.random.default_rng(0)
    for kind in (np.float32, np.float64):
        column = draw.normal(size=rows).astype(kind)
        reference = Profile.of(pa.table({"x": column[:100_000]}))
        probe = Probe(reference, ["x"])
        tensor, table = torch.from_numpy(column), pa.table({"x": column})
        counts, moments, edges, edges_float32 = views_of(probe.state, 1, probe._width)
        looked_up = edges_float32 if kind == np.float32 else edges
        state = looked_up.numpy(), counts.numpy(), moments.numpy()
        steps: dict[str, Step] = {
            "torch: profile_of_tensors": lambda r=reference, t=tensor: profile_of_tensors(r, {"x": t}),  # type: ignore[misc]
            "  its numpy kernel": lambda t=tensor, s=state: count_with_numpy(t.unsqueeze(0).numpy(), *s),  # type: ignore[misc]
            "numpy: Profile.updated": lambda r=reference, t=table: r.empty().updated(t),  # type: ignore[misc]
            "torch's own operators": lambda t=tensor, p=probe: count_with_torch(  # type: ignore[misc]
                t[: rows // 8].unsqueeze(1), p.state, p._width
            ),
            "limit: numpy.sort": lambda c=column: np.sort(c),  # type: ignore[misc]
        }
        found = interleaved(steps, rounds, 1)
        found["torch's own operators"] = [8 * seconds for seconds in found["torch's own operators"]]
        print(f"\n{rows:,} {np.dtype(kind).name} values, 128 bins      million values/s   seconds ÷ numpy's")
        for name, seconds in found.items():
            share = ratio(seconds, found["numpy: Profile.updated"])
            print(f"  {name:<38} {rows / min(seconds) / 1e6:>12.1f} {share:>18.2f}")


def small_batches(rounds: int) -> None:
    """What a probe takes of a step, for batches as a server has them; the copies and the counting of what waited.

    Beside it what anything costs that looks at the input: each column's sum, by torch itself.
    """
    draw = np.random.default_rng(3)
    print("\nMLP 256-256-8, eager      step, µs   probe, µs   ns a value: probe, step   cost (goal 5 %)   sums   none")
    for columns in (20, 64):
        names = [f"x{place}" for place in range(columns)]
        reference = Profile.of(pa.table({name: draw.normal(size=10_000) for name in names}))
        model = mlp(columns, 256, 256, 8).eval()
        for batch in (1, 8, 64, 256, 1024, 4096):
            probe, values = Probe(reference, names), torch.randn(batch, columns)
            # Short turns, many of them: a machine changes its pace. Every step pays its part of the counting.
            repeat = max(2, 65_536 // (batch * columns)) if batch > 8 else 400
            with torch.inference_mode():
                steps: dict[str, Step] = {
                    "without": lambda m=model, v=values: m(v),  # type: ignore[misc]
                    "with": lambda m=model, p=probe, v=values: m(p(v)),  # type: ignore[misc]
                    "probe": lambda p=probe, v=values: p(v),  # type: ignore[misc]
                }
                steps["sums"] = lambda m=model, v=values: (v.sum(0), m(v))  # type: ignore[misc]
                steps["again"] = steps["without"]
                found = interleaved(steps, rounds if batch <= 8 else 8 * rounds, repeat)
            step, alone = (statistics.median(found[name]) * 1e6 for name in ("without", "probe"))
            cost, sums, again = (ratio(found[name], found["without"]) - 1 for name in ("with", "sums", "again"))
            each = 1e3 / batch / columns
            print(
                f"  {batch:>4} rows x {columns} columns {step:>11.0f} {alone:>11.1f} {alone * each:>15.2f} "
                f"{step * each:>10.1f} {cost:>17.1%} {sums:>6.1%} {again:>6.1%}"
            )


def steps_of_models(batch: int, columns: int, rounds: int, compiled: bool) -> None:
    draw = np.random.default_rng(1)
    names = [f"x{place}" for place in range(columns)]
    reference = Profile.of(pa.table({name: draw.normal(size=10_000) for name in names}))
    values = torch.randn(batch, columns)
    form = "compiled" if compiled else "eager"
    title = f"\na step of {batch} rows x {columns} columns, {form}   without, µs   probe alone, µs   cost of the probe"
    print(title + "   before the compiled model" * compiled)
    for name, model in models(columns).items():
        model = model.eval()
        probe = Probe(reference, names)
        watched: nn.Module = nn.Sequential(probe, model)
        plain: Step = model
        if compiled:
            torch.compiler.reset()
            watched, plain = torch.compile(watched, fullgraph=True), torch.compile(model, fullgraph=True)  # type: ignore[assignment]
        with torch.inference_mode():
            steps: dict[str, Step] = {"without": lambda p=plain: p(values), "with": lambda w=watched: w(values)}  # type: ignore[misc,call-arg]
            steps["probe"] = lambda p=probe: p(values)  # type: ignore[misc]
            if compiled:
                # A call of its own in place of an operator in the graph, whose guards and call take longer.
                steps["before"] = lambda p=plain, q=probe: p(q(values))  # type: ignore[misc]
            for step in steps.values():
                step()
            found = interleaved(steps, rounds, 20)
        costs = [ratio(found[name], found["without"]) - 1 for name in ("with", "before") if name in found]
        print(
            f"  {name:<34} {statistics.median(found['without']) * 1e6:>14.0f} "
            f"{statistics.median(found['probe']) * 1e6:>16.0f} {costs[0]:>16.1%}"
            + "".join(f" {cost:>16.1%}" for cost in costs[1:])
        )


def on_a_gpu(rounds: int) -> None:
    draw = np.random.default_rng(2)
    names = [f"x{place}" for place in range(64)]
    reference = Profile.of(pa.table({name: draw.normal(size=10_000) for name in names}))
    probe = Probe(reference, names).cuda()
    values = torch.randn(1 << 20, 64, device="cuda")
    found = interleaved({"probe": lambda: probe(values)}, rounds, 5, cuda=True)["probe"]
    print(f"\n{torch.cuda.get_device_name()}: {values.numel() / min(found) / 1e9:.1f} billion values/s (goal 20)")
    batch = values[:4096]
    for name, model in models(64).items():
        model = model.cuda().eval()
        watched = nn.Sequential(probe, model)
        with torch.inference_mode():
            steps: dict[str, Step] = {"without": lambda m=model: m(batch), "with": lambda w=watched: w(batch)}  # type: ignore[misc]
            seconds = interleaved(steps, rounds, 20, cuda=True)
        print(f"  {name:<34} {ratio(seconds['with'], seconds['without']) - 1:>10.1%} of a step (goal 2 %)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--columns", type=int, default=20)
    parser.add_argument("--no-compile", action="store_true", help="leave out the compiled models, which take a minute")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, numpy {np.__version__}, {'C' if library() else 'numpy'} kernel, one thread")
    whole_tensors(arguments.rows, arguments.rounds)
    small_batches(arguments.rounds)
    steps_of_models(arguments.batch, arguments.columns, arguments.rounds, compiled=False)
    if not arguments.no_compile:
        steps_of_models(arguments.batch, arguments.columns, arguments.rounds, compiled=True)
    if torch.cuda.is_available():
        on_a_gpu(arguments.rounds)
    else:
        print("\nno CUDA device: nothing is said about GPUs (goals there: 20 billion values/s, 2 % of a step)")


if __name__ == "__main__":
    main()
