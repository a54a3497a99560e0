"""Random PromQL to our engine and to a real Prometheus 2.42 that holds the same samples: how many answers differ.

Run: python benchmarks/promql_differences.py [--expressions 5000] [--seed 1] [--show 20]. Prints every expression whose
answers are not equal to 1e-9 and exits with 1 if there are any. Answers differ on purpose where version 2.42 differs
from what the engine's PROMETHEUS_2 semantics are: those kinds are counted by name and not as differences.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from promql_differential import Comparison, filled_store, running_prometheus
from promql_random import Grammar, random_series

from collectors.query import PROMETHEUS_2, Engine


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--expressions", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", type=int, default=20)
    options = parser.parse_args()
    series = random_series(options.seed)
    store = filled_store(series)
    grammar, verdicts, begin = Grammar(options.seed), Counter[str](), time.monotonic()
    with tempfile.TemporaryDirectory() as folder, running_prometheus(Path(folder), series) as client:
        comparison = Comparison(Engine(store, semantics=PROMETHEUS_2), client)
        for _ in range(options.expressions):
            query = grammar.query()
            verdict = comparison.verdict(query)
            verdicts[verdict.kind] += 1
            if verdict.kind == "different" and verdicts["different"] <= options.show:
                print(f"{query}\n    {verdict.detail}")
    store.close()
    print(", ".join(f"{count} {kind}" for kind, count in verdicts.most_common()), end=" ")
    print(f"of {options.expressions} in {time.monotonic() - begin:.0f} s")
    raise SystemExit(1 if verdicts["different"] else 0)


if __name__ == "__main__":
    main()
