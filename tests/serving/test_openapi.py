"""The published description: it is true to the routes, and no request made from it ends in an error of the server."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving import Service
from serving.pages.openapi import document

Start = Callable[..., Awaitable[Service]]
# Seconds of CI; a longer run is `--max-examples 200`.
EXAMPLES = 4


def test_every_reference_leads_somewhere_and_every_operation_has_a_name() -> None:
    page = document()
    ids = [
        operation["operationId"]
        for path in page["paths"].values()
        for method, operation in path.items()
        if method != "parameters"
    ]
    assert len(set(ids)) == len(ids) > 30
    for target in re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(page)):
        found: Any = page
        for step in target.split("/"):
            found = found[step]
        assert found
    assert page["info"]["version"] != "0"
    for path in page["paths"].values():
        for method, operation in path.items():
            if method != "parameters":
                assert operation["responses"], operation["operationId"]


@pytest.mark.slow
async def test_the_description_has_every_route_and_no_other(start: Start) -> None:
    service = await start()
    routes: set[tuple[str, str]] = set()
    for route in service.edge.gateway.app.routes:  # type: ignore[union-attr]
        routes |= {(route.path, method.lower()) for method in route.methods - {"HEAD"}}
    described = {
        (path, method) for path, item in document()["paths"].items() for method in item if method != "parameters"
    }
    # Other spellings of the same pages, and what is only there to say that it is not offered.
    aside = {path for path, _ in routes if "sharedmemory" in path or path.endswith("trace/setting")}
    aside |= {"/health/live", "/health/ready", "/v2/", "/openapi.json"}
    assert {entry for entry in routes if entry[0] not in aside} <= described
    assert described <= routes


@pytest.mark.slow
async def test_no_request_made_from_the_description_ends_in_an_error_of_ours(start: Start, tmp_path: Path) -> None:
    service = await start()
    url = f"http://127.0.0.1:{service.port}"
    async with httpx.AsyncClient() as browser:
        page = (await browser.get(f"{url}/openapi.json")).json()
    # Names that are there and names that are not; random ones would all end in 404.
    page["components"]["parameters"]["model"]["schema"] = {"enum": ["fares", "nowhere"]}
    page["components"]["parameters"]["version"]["schema"] = {"enum": ["1", "2", "9"]}
    (tmp_path / "openapi.json").write_text(json.dumps(page))
    process = subprocess.Popen(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", "openapi.json", "--url", url, "--no-color",
            "--max-examples", str(EXAMPLES), "--phases", "fuzzing", "--seed", "1",
            # Whether a request fits a model is not in the description; once unloaded, all answers are 503.
            "--checks", "all", "--exclude-checks", "positive_data_acceptance",
            "--exclude-operation-id", "repositoryUnload",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=tmp_path,
    )  # fmt: skip
    output = await asyncio.to_thread(lambda: process.communicate(timeout=240)[0])
    assert process.returncode == 0, output
    assert re.search(r"(\d+) generated", output), output
    assert service.health.unready() is None
