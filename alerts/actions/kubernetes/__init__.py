"""Actions on Kubernetes by its API: Deployments, Argo Rollouts, and KServe's traffic."""

from alerts.actions.kubernetes.api_server import ApiServer, Conflict
from alerts.actions.kubernetes.deployment import DeploymentHook
from alerts.actions.kubernetes.inference_service import InferenceServiceHook
from alerts.actions.kubernetes.place import Place, kubernetes_hook
from alerts.actions.kubernetes.rollout import RolloutHook

__all__ = [
    "ApiServer",
    "Conflict",
    "DeploymentHook",
    "InferenceServiceHook",
    "Place",
    "RolloutHook",
    "kubernetes_hook",
]
