"""The server under test: `ours.py PORT REGISTRY_URL ARTIFACTS_DIR [COLLECTOR_URL [probe | both]]`.

With a collector all is on; with `probe` features are counted in the server and events go without them, with `both` they
have them, too.
"""

import sys
from pathlib import Path

from serving import ServingConfig, serve

if __name__ == "__main__":
    collector = sys.argv[4] if len(sys.argv) > 4 else None
    ratio = 0.01 if collector else 0.0
    counted = sys.argv[5] if len(sys.argv) > 5 else ""
    config = ServingConfig(
        registry_url=sys.argv[2], artifacts_dir=Path(sys.argv[3]), port=int(sys.argv[1]),
        trace_sample_ratio=ratio, collector_url=collector, probe=bool(counted),
        event_features=counted != "probe",
    )  # fmt: skip
    serve(config, "ERROR")
