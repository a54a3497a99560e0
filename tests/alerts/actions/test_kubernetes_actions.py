"""Actions on Kubernetes against a server with the paths, verbs, patch types, conflicts and controllers of its API."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from alerts.actions import Call, HookAway, HookError
from alerts.actions.kubernetes import ApiServer, Place, kubernetes_hook
from tests.loopback import Quiet, served

TOKEN = "a-token"
APPS, ARGO, KSERVE = "/apis/apps/v1", "/apis/argoproj.io/v1alpha1", "/apis/serving.kserve.io/v1beta1"
CALL = Call(key="rollback:toy:toy-2", action="rollback", model="toy", release="toy-2")


def merged(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    found = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            found[name] = merged(found.get(name), value)
    return found


def operated(target: Any, operations: list[dict[str, Any]]) -> Any:
    """RFC 6902: test, add and replace on objects. Raises ValueError as the API server says it."""
    found = copy.deepcopy(target)
    for operation in operations:
        parts = [part.replace("~1", "/").replace("~0", "~") for part in operation["path"].split("/")[1:]]
        place = found
        for part in parts[:-1]:
            if part not in place:
                raise ValueError(
                    f"{operation['op']} operation does not apply: doc is missing path: {operation['path']}"
                )
            place = place[part]
        if operation["op"] == "test":
            if place.get(parts[-1]) != operation["value"]:
                raise ValueError(f"testing value {operation['path']} failed: test failed")
        elif operation["op"] == "replace" and parts[-1] not in place:
            raise ValueError(f"replace operation does not apply: doc is missing key: {operation['path']}")
        else:
            place[parts[-1]] = operation["value"]
    return found


@dataclass
class Cluster:
    """Objects by path. `controller` runs after every change of a spec, as the controllers of a cluster would."""

    url: str = ""
    objects: dict[str, Any] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    before_patch: list[Callable[[], None]] = field(default_factory=list)
    refuse: list[int] = field(default_factory=list)
    controller: Callable[[Any], None] = lambda found: None
    version: int = 100

    def put(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        self.version += 1
        metadata = {"uid": path, "generation": 1, **body.get("metadata", {}), "resourceVersion": str(self.version)}
        metadata["name"] = path.rsplit("/", 1)[-1]
        self.objects[path] = {**body, "metadata": metadata}
        return self.objects[path]

    def answer(self, verb: str, target: str, headers: Any, body: bytes) -> tuple[int, Any]:
        url = urlsplit(target)
        self.requests.append((verb, url.path, headers.get("Content-Type", "")))
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"kind": "Status", "message": "Unauthorized"}
        if self.refuse:
            return self.refuse.pop(0), {"kind": "Status", "message": "the server is currently unable"}
        if verb == "GET" and url.path.endswith("/replicasets"):
            wanted = dict(pair.split("=") for pair in parse_qs(url.query)["labelSelector"][0].split(","))
            items = [
                one for path, one in self.objects.items()
                if path.startswith(url.path) and wanted.items() <= one["metadata"].get("labels", {}).items()
            ]  # fmt: skip
            return 200, {"kind": "ReplicaSetList", "items": items}
        status = url.path.endswith("/status")
        path = url.path.removesuffix("/status")
        if path not in self.objects:
            return 404, {"kind": "Status", "reason": "NotFound", "message": f"{path} not found"}
        if verb == "GET":
            return 200, self.objects[path]
        if self.before_patch:
            self.before_patch.pop(0)()
        return self.patch(path, headers.get("Content-Type", ""), json.loads(body), status)

    def patch(self, path: str, kind: str, body: Any, status: bool) -> tuple[int, Any]:
        found = self.objects[path]
        if kind == "application/json-patch+json":
            try:
                new = operated(found, body)
            except ValueError as error:
                return 422, {"kind": "Status", "message": str(error)}
        elif kind == "application/merge-patch+json":
            asked = body.get("metadata", {}).get("resourceVersion")
            if asked not in (None, found["metadata"]["resourceVersion"]):
                message = "the object has been modified; please apply your changes to the latest version and try again"
                return 409, {"kind": "Status", "reason": "Conflict", "message": message}
            new = merged(found, body)
        else:
            return 415, {"kind": "Status", "message": f"the body of the request was in an unknown format {kind!r}"}
        if status:  # of the status subresource only the status is taken
            new = {**found, "status": new.get("status", {})}
        changed = new["spec"] != found["spec"]
        self.version += 1
        new["metadata"]["resourceVersion"] = str(self.version)
        new["metadata"]["generation"] = found["metadata"]["generation"] + changed
        self.objects[path] = new
        self.controller(new)
        return 200, new


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    state = Cluster()

    class Handler(Quiet):
        def do_GET(self) -> None:
            self._answer("GET")

        def do_PATCH(self) -> None:
            self._answer("PATCH")

        def _answer(self, verb: str) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            code, answer = state.answer(verb, self.path, self.headers, body)
            self.send_body(code, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    with served(Handler) as state.url:
        yield state


def template(image: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"labels": {"app": "toy", **labels}}, "spec": {"containers": [{"name": "m", "image": image}]}}


def hook_of(cluster: Cluster, place: str, ready_seconds: float = 60.0, token: str = TOKEN) -> Any:
    return kubernetes_hook(ApiServer(cluster.url, token=token), place, ready_seconds=ready_seconds)


def acted(hook: Any, call: Call) -> tuple[Any, Any]:
    """What was prepared and what is confirmed of a call that is carried out."""
    prepared = hook.prepare(call)
    assert (prepared.problem, prepared.done) == ("", "")
    whole = Call(**{name: getattr(call, name) for name in call.__slots__} | {"target": prepared.target})
    hook.run(whole)
    assert hook.run(whole)["already"]
    assert hook.prepare(whole).done
    return prepared, hook.confirm(whole)


# --- Deployments ------------------------------------------------------------------------------------------------------
DEPLOYMENT = f"{APPS}/namespaces/prod/deployments/toy"
SETS = f"{APPS}/namespaces/prod/replicasets"


@pytest.fixture
def deployment(cluster: Cluster) -> Cluster:
    def roll(found: Any) -> None:
        replicas = found["spec"]["replicas"]
        found["status"] = {
            "observedGeneration": found["metadata"]["generation"], "replicas": replicas,
            "updatedReplicas": replicas, "availableReplicas": replicas,
        }  # fmt: skip

    found = cluster.put(DEPLOYMENT, {
        "metadata": {"annotations": {"deployment.kubernetes.io/revision": "3"}, "generation": 7},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "toy"}}, "template": template("toy:3")},
    })  # fmt: skip
    roll(found)
    owner = [{"uid": DEPLOYMENT, "controller": True}]
    for revision in (1, 2, 3):
        cluster.put(f"{SETS}/toy-{revision}", {
            "metadata": {"annotations": {"deployment.kubernetes.io/revision": str(revision)}, "labels": {"app": "toy"},
                         "ownerReferences": owner},
            "spec": {"template": template(f"toy:{revision}", **{"pod-template-hash": f"h{revision}"})},
        })  # fmt: skip
    cluster.put(f"{SETS}/other-9", {
        "metadata": {"annotations": {"deployment.kubernetes.io/revision": "2"}, "labels": {"app": "toy"},
                     "ownerReferences": [{"uid": "another", "controller": True}]},
        "spec": {"template": template("other:9")},
    })  # fmt: skip
    cluster.controller = roll
    return cluster


def test_a_deployment_goes_back_to_the_template_of_the_revision_before(deployment: Cluster) -> None:
    prepared, confirmed = acted(hook_of(deployment, "deployments/prod/{model}"), CALL)

    found = deployment.objects[DEPLOYMENT]
    assert found["spec"]["template"] == template("toy:2")
    assert found["metadata"]["annotations"] == {
        "deployment.kubernetes.io/revision": "3", "trimtab.dev/action": CALL.key,
    }  # fmt: skip
    assert (prepared.before["images"], prepared.target["images"]) == (["toy:3"], ["toy:2"])
    assert confirmed.problem == ""
    assert confirmed.after["available"] == 2
    assert [kind for verb, _, kind in deployment.requests if verb == "PATCH"] == ["application/json-patch+json"]


def test_a_change_of_its_status_between_reading_and_writing_is_read_again(deployment: Cluster) -> None:
    def bump() -> None:
        deployment.version += 1
        deployment.objects[DEPLOYMENT]["metadata"]["resourceVersion"] = str(deployment.version)

    deployment.before_patch = [bump, bump]
    acted(hook_of(deployment, "deployments/prod/toy"), CALL)

    assert sum(verb == "PATCH" for verb, _, _ in deployment.requests) == 3
    assert deployment.objects[DEPLOYMENT]["spec"]["template"] == template("toy:2")


def test_a_newer_release_is_not_rolled_over(deployment: Cluster) -> None:
    hook = hook_of(deployment, "deployments/prod/toy")
    prepared = hook.prepare(CALL)
    deployment.objects[DEPLOYMENT]["spec"]["template"] = template("toy:4")
    deployment.objects[DEPLOYMENT]["metadata"]["generation"] += 1

    with pytest.raises(HookError, match="a newer release is not rolled over"):
        hook.run(Call(key=CALL.key, action="rollback", model="toy", target=prepared.target))
    assert deployment.objects[DEPLOYMENT]["spec"]["template"] == template("toy:4")


def test_pods_that_do_not_get_ready_are_a_failure(deployment: Cluster) -> None:
    deployment.controller = lambda found: None
    _, confirmed = acted(hook_of(deployment, "deployments/prod/toy", ready_seconds=0.0), CALL)

    assert "not ready after 0 s" in confirmed.problem


def test_what_stands_against_an_undo_is_said(deployment: Cluster) -> None:
    hook = hook_of(deployment, "deployments/prod/toy")
    deployment.objects[DEPLOYMENT]["spec"]["paused"] = True
    assert "is paused" in hook.prepare(CALL).problem
    deployment.objects[DEPLOYMENT]["spec"]["paused"] = False
    for revision in (1, 2):
        del deployment.objects[f"{SETS}/toy-{revision}"]
    assert "no revision before" in hook.prepare(CALL).problem


def test_refusals_of_the_api_server_say_how_to_mend_them(deployment: Cluster) -> None:
    with pytest.raises(HookError, match="401: Unauthorized; set a token"):
        hook_of(deployment, "deployments/prod/toy", token="wrong").prepare(CALL)
    with pytest.raises(HookError, match=r"404: .* not found; is the name right"):
        hook_of(deployment, "deployments/prod/absent").prepare(CALL)
    deployment.refuse = [503]
    with pytest.raises(HookAway, match="503"):
        hook_of(deployment, "deployments/prod/toy").prepare(CALL)
    with pytest.raises(ValueError, match="KIND/NAMESPACE/NAME"):
        Place.parse("pods/prod/toy")
    with pytest.raises(HookError, match="no name in Kubernetes"):
        hook_of(deployment, "deployments/prod/{model}").prepare(Call(key="k", action="rollback", model="a/b"))


def scale_of(replicas: str, target: dict[str, Any] | None = None) -> Call:
    labels = {"replicas": replicas} if replicas else {}
    return Call(key=f"scale:toy:{replicas}", action="scale", model="toy", labels=labels, target=target or {})


@pytest.mark.parametrize(
    ("replicas", "wanted"), [("", 3), ("5", 5), ("+4", 6), ("-1", 1), ("x1.5", 3), ("-7", 1), ("80", 8)]
)
def test_a_deployment_is_scaled_within_its_limits_and_back(deployment: Cluster, replicas: str, wanted: int) -> None:
    server = ApiServer(deployment.url, token=TOKEN)
    hook = kubernetes_hook(server, "deployments/prod/{model}", action="scale", max_replicas=8)
    prepared, confirmed = acted(hook, scale_of(replicas))

    assert deployment.objects[DEPLOYMENT]["spec"]["replicas"] == wanted
    assert (confirmed.problem, confirmed.after["available"]) == ("", wanted)
    assert (prepared.before["replicas"], prepared.target["undo"]) == (2, {"replicas": "2"})
    acted(hook, Call(key="undo", action="scale", model="toy", labels=prepared.target["undo"]))
    assert deployment.objects[DEPLOYMENT]["spec"]["replicas"] == 2


def test_a_deployment_is_not_scaled_over_another_change_nor_beyond_what_is_allowed(deployment: Cluster) -> None:
    server = ApiServer(deployment.url, token=TOKEN)
    hook = kubernetes_hook(server, "deployments/prod/toy", action="scale", max_replicas=2)
    assert "1 to 2 are allowed" in hook.prepare(scale_of("+1")).problem
    assert "give a number" in hook.prepare(scale_of("many")).problem
    with pytest.raises(HookError, match="changed since it was looked at"):
        hook.run(scale_of("1", {"replicas": 1, "from_generation": 3}))
    with pytest.raises(ValueError, match="only deployments"):
        kubernetes_hook(server, "rollouts/prod/toy", action="scale")


# --- Argo Rollouts ----------------------------------------------------------------------------------------------------
ROLLOUT = f"{ARGO}/namespaces/prod/rollouts/toy"


@pytest.fixture
def rollout(cluster: Cluster) -> Cluster:
    """Revision 2 is being rolled out over 1."""

    def control(found: Any) -> None:
        status = found["status"]
        image = found["spec"]["template"]["spec"]["containers"][0]["image"]
        status["currentPodHash"] = f"h{image[-1]}"
        if status.pop("promoteFull", None):
            status["stableRS"] = status["currentPodHash"]
        if status["stableRS"] == status["currentPodHash"]:
            status.pop("abort", None)
            status["phase"] = "Healthy"

    cluster.put(ROLLOUT, {
        "metadata": {"annotations": {"rollout.argoproj.io/revision": "2"}, "generation": 4},
        "spec": {"selector": {"matchLabels": {"app": "toy"}}, "template": template("toy:2")},
        "status": {"phase": "Paused", "stableRS": "h1", "currentPodHash": "h2",
                   "pauseConditions": [{"reason": "CanaryPauseStep"}]},
    })  # fmt: skip
    for revision in (1, 2):
        cluster.put(f"{SETS}/toy-{revision}", {
            "metadata": {"annotations": {"rollout.argoproj.io/revision": str(revision)},
                         "labels": {"app": "toy", "rollouts-pod-template-hash": f"h{revision}"},
                         "ownerReferences": [{"uid": ROLLOUT, "controller": True}]},
            "spec": {"template": template(f"toy:{revision}", **{"rollouts-pod-template-hash": f"h{revision}"})},
        })  # fmt: skip
    cluster.controller = control
    return cluster


def test_a_rollout_is_aborted_and_brought_back_to_its_stable_template(rollout: Cluster) -> None:
    prepared, confirmed = acted(hook_of(rollout, "rollouts/prod/toy"), CALL)

    patches = [(path, kind) for verb, path, kind in rollout.requests if verb == "PATCH"]
    assert patches == [
        (f"{ROLLOUT}/status", "application/merge-patch+json"), (ROLLOUT, "application/json-patch+json"),
    ]  # fmt: skip
    assert rollout.objects[ROLLOUT]["spec"]["template"] == template("toy:1")
    assert prepared.target["abort"] is True
    assert (confirmed.problem, confirmed.after["phase"], confirmed.after["stable"]) == ("", "Healthy", "h1")


def test_a_rollout_is_promoted_advanced_and_paused(rollout: Cluster) -> None:
    hook = hook_of(rollout, "rollouts/prod/toy")

    _, paused = acted(hook, Call(key="p", action="pause", model="toy"))
    assert paused.after["paused"] is True
    _, advanced = acted(hook, Call(key="a", action="advance", model="toy"))
    assert advanced.after["paused"] is False
    assert "pauseConditions" not in rollout.objects[ROLLOUT]["status"]
    _, promoted = acted(hook, Call(key="f", action="promote", model="toy"))
    assert (promoted.problem, promoted.after["stable"]) == ("", "h2")
    assert "no update of the Rollout" in hook.prepare(Call(key="g", action="promote", model="toy")).problem


# --- KServe -----------------------------------------------------------------------------------------------------------
SERVICE = f"{KSERVE}/namespaces/prod/inferenceservices/toy"


@pytest.fixture
def inference(cluster: Cluster) -> Cluster:
    """Revision 2 has a tenth of the traffic beside revision 1."""

    def route(found: Any) -> None:
        percent = found["spec"]["predictor"].get("canaryTrafficPercent")
        status = found["status"]["components"]["predictor"]
        share = 100 if percent is None else percent
        status["traffic"] = [{"revisionName": "toy-2", "latestRevision": True, "percent": share}]
        if share < 100:
            status["traffic"].append({"revisionName": "toy-1", "tag": "prev", "percent": 100 - share})

    found = cluster.put(SERVICE, {
        "spec": {"predictor": {"canaryTrafficPercent": 10, "model": {"storageUri": "s3://toy/2"}}},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "components": {"predictor": {"latestReadyRevision": "toy-2", "latestRolledoutRevision": "toy-1"}},
        },
    })  # fmt: skip
    route(found)
    cluster.controller = route
    return cluster


def test_kserves_traffic_goes_back_to_the_last_good_revision(inference: Cluster) -> None:
    def stale() -> None:
        inference.version += 1
        inference.objects[SERVICE]["metadata"]["resourceVersion"] = str(inference.version)

    inference.before_patch = [stale]  # a conflict, 409
    prepared, confirmed = acted(hook_of(inference, "inferenceservices/prod/toy"), CALL)

    assert inference.objects[SERVICE]["spec"]["predictor"]["canaryTrafficPercent"] == 0
    assert prepared.target["revision"] == "toy-1"
    assert (confirmed.problem, confirmed.after["traffic"]) == ("", {"toy-2": 0, "toy-1": 100})


def test_kserves_traffic_advances_and_is_promoted(inference: Cluster) -> None:
    hook = hook_of(inference, "inferenceservices/prod/toy")

    _, advanced = acted(hook, Call(key="a", action="advance", model="toy", labels={"weight": "0.5"}))
    assert advanced.after["traffic"] == {"toy-2": 50, "toy-1": 50}
    _, promoted = acted(hook, Call(key="p", action="promote", model="toy"))
    assert promoted.after["traffic"] == {"toy-2": 100}
    with pytest.raises(HookError, match="weight"):
        hook.prepare(Call(key="w", action="advance", model="toy", labels={"weight": "2"}))
