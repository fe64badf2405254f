"""Is this cluster, and this user's way into it, fit for training and serving?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aalnet.errors import AalnetError
from cluster.view.checks import Check
from deploy.operator.api import Cluster
from deploy.operator.arguments import Changes
from deploy.operator.changes import changed
from deploy.operator.errors import AccessError, Missing
from deploy.operator.objects import COMPONENTS, Object, title
from deploy.operator.render import render

OLDEST = (1, 30)  # preStop sleep of the endpoint
GPU = "nvidia.com/gpu"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
WRITE = ("get", "list", "watch", "create", "patch", "delete")
READ = ("get", "list")
# As the Role aalnet-operator has it (deploy/kubernetes/base/namespace/operators.yaml).
NEEDED: dict[tuple[str, str], Sequence[str]] = {
    ("ray.io", "rayjobs"): WRITE,
    ("ray.io", "rayservices"): WRITE,
    ("apps", "deployments"): WRITE,
    ("autoscaling", "horizontalpodautoscalers"): WRITE,
    ("policy", "poddisruptionbudgets"): WRITE,
    ("", "configmaps"): WRITE,
    ("", "services"): WRITE,
    ("", "pods"): READ,
    ("", "events"): READ,
    ("", "pods/log"): ("get",),
}


def checks(cluster: Cluster, namespace: str, overlay: str) -> Iterator[Check]:
    """All checks, each as soon as it is known. After a server that does not answer, no more."""
    first = _guarded("server", lambda: check_server(cluster))
    yield first
    if first.status == "fail":
        return
    todo: dict[str, Callable[[], Check]] = {
        "kuberay": lambda: check_kuberay(cluster),
        "namespace": lambda: check_namespace(cluster, namespace),
        "permissions": lambda: check_permissions(cluster, namespace),
        "storage class": lambda: check_storage_class(cluster),
        "gpu nodes": lambda: check_gpus(cluster, needed=overlay != "local"),
        "kueue": lambda: check_kueue(cluster, namespace, needed=overlay == "kueue"),
        "prometheus": lambda: check_prometheus(cluster),
        "metrics": lambda: check_metrics(cluster),
        "manifests": lambda: check_manifests(cluster, namespace, overlay),
    }
    for name, check in todo.items():
        yield _guarded(name, check)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except AccessError as error:
        if name in ("server", "manifests"):
            return Check(name, "fail", str(error))
        remedy = "let the cluster's administrator run this too"
        return Check(name, "warn", f"not yours to see: {str(error).partition(';')[0]}", remedy)
    except AalnetError as error:
        return Check(name, "fail", str(error))


def check_server(cluster: Cluster) -> Check:
    """The API server's answer and version."""
    version = cluster.version()
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2])
    detail = f"{cluster.address}, Kubernetes {version}"
    if numbers < OLDEST:
        wanted = ".".join(map(str, OLDEST))
        return Check("server", "warn", detail, f"made for Kubernetes {wanted} and newer")
    return Check("server", "ok", detail)


def check_kuberay(cluster: Cluster) -> Check:
    """KubeRay's kinds. Whether its version knows all our fields, the manifests' check tells."""
    versions = cluster.group_versions("ray.io")
    remedy = "install KubeRay 1.7: helm install kuberay-operator kuberay/kuberay-operator"
    if "v1" not in versions:
        told = f"ray.io serves {', '.join(versions)}" if versions else "its CRDs are missing"
        return Check("kuberay", "fail", told, remedy)
    missing = {"RayJob", "RayService", "RayCluster"} - set(cluster.kinds("ray.io/v1"))
    if missing:
        return Check("kuberay", "fail", f"no {', '.join(sorted(missing))}", remedy)
    try:
        operators = cluster.list(
            "apps/v1", "Deployment", None, {"app.kubernetes.io/name": "kuberay-operator"}
        )
    except AccessError:
        return Check("kuberay", "ok", "CRDs ray.io/v1; its operator is not ours to see")
    if not operators:
        detail = "CRDs ray.io/v1, and no Deployment labelled kuberay-operator"
        return Check("kuberay", "warn", detail, "is its operator running? RayJobs need it")
    image = operators[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    ready = operators[0].get("status", {}).get("availableReplicas", 0)
    detail = f"CRDs ray.io/v1, operator {image.rpartition('/')[2]}"
    if not ready:
        return Check("kuberay", "fail", f"{detail}, not ready", "look at its pods and logs")
    return Check("kuberay", "ok", detail)


def check_namespace(cluster: Cluster, namespace: str) -> Check:
    """The namespace and its Pod Security level."""
    found = cluster.find("v1", "Namespace", None, namespace)
    remedy = "kubectl apply --server-side -k deploy/kubernetes/overlays/OVERLAY/around"
    if found is None:
        return Check("namespace", "fail", f"{namespace} is missing", remedy)
    level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
    if level != "restricted":
        told = f"{namespace} enforces {level or 'no level'} of Pod Security"
        return Check("namespace", "warn", told, remedy)
    return Check("namespace", "ok", f"{namespace}, Pod Security restricted")


def check_permissions(cluster: Cluster, namespace: str) -> Check:
    """What `aalnet deploy` does, asked of the server one by one."""
    asked = [(verb, group, name) for (group, name), verbs in NEEDED.items() for verb in verbs]
    refused = [
        f"{verb} {name}" for verb, group, name in asked
        if not cluster.may(verb, group, name, namespace)
    ]  # fmt: skip
    if refused:
        told = f"in {namespace} you may not {', '.join(refused)}"
        return Check("permissions", "fail", told, "ask for the Role aalnet-operator")
    return Check("permissions", "ok", f"all {len(asked)} in {namespace}")


def check_storage_class(cluster: Cluster) -> Check:
    """A default storage class; only the overlay `local` claims a volume."""
    classes = cluster.list("storage.k8s.io/v1", "StorageClass")
    defaults = [
        item["metadata"]["name"] for item in classes
        if item["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
    ]  # fmt: skip
    if not defaults:
        remedy = "the overlay `local` needs one for its S3 server; the others do not"
        return Check("storage class", "warn", f"{len(classes)}, none of them default", remedy)
    return Check("storage class", "ok", f"default {', '.join(defaults)}")


def check_gpus(cluster: Cluster, *, needed: bool) -> Check:
    """Nodes that offer GPUs, and of what kind."""
    nodes = cluster.list("v1", "Node")
    offers = {node["metadata"]["name"]: _gpus(node) for node in nodes}
    total = sum(offers.values())
    if total:
        kinds = {
            node["metadata"].get("labels", {}).get("nvidia.com/gpu.product", "unnamed")
            for node in nodes if offers[node["metadata"]["name"]]
        }  # fmt: skip
        with_gpu = sum(count > 0 for count in offers.values())
        told = f"{total} on {with_gpu} of {len(nodes)} nodes ({', '.join(sorted(kinds))})"
        return Check("gpu nodes", "ok", told)
    told = f"no node of {len(nodes)} offers {GPU} now"
    if not needed:
        return Check("gpu nodes", "ok", told)
    remedy = "fine where nodes come when pods wait (Karpenter); else add some, with NVIDIA's plugin"
    return Check("gpu nodes", "warn", told, remedy)


def _gpus(node: Object) -> int:
    return int(node.get("status", {}).get("allocatable", {}).get(GPU, "0"))


def check_kueue(cluster: Cluster, namespace: str, *, needed: bool) -> Check:
    """Kueue, and the queue that the overlay names."""
    versions = cluster.group_versions("kueue.x-k8s.io")
    if not versions:
        remedy = "install Kueue 0.19, or use another overlay"
        return Check("kueue", "fail" if needed else "ok", "not installed", remedy)
    api_version = f"kueue.x-k8s.io/{versions[0]}"
    queues = [
        item["metadata"]["name"] for item in cluster.list(api_version, "LocalQueue", namespace)
    ]
    told = f"{versions[0]}, queues in {namespace}: {', '.join(queues) or 'none'}"
    if needed and ("v1beta2" not in versions or not queues):
        remedy = "apply overlays/kueue/around; it needs v1beta2, of Kueue 0.19"
        return Check("kueue", "fail", told, remedy)
    return Check("kueue", "ok", told)


def check_prometheus(cluster: Cluster) -> Check:
    """The Prometheus operator's kinds."""
    try:
        kinds = cluster.kinds("monitoring.coreos.com/v1")
    except Missing:
        kinds = {}
    if {"PodMonitor", "PrometheusRule"} <= set(kinds):
        return Check("prometheus", "ok", "PodMonitor and PrometheusRule are known")
    remedy = "install kube-prometheus-stack, or apply without base/monitoring"
    return Check("prometheus", "warn", "its operator's CRDs are missing", remedy)


def check_metrics(cluster: Cluster) -> Check:
    """The metrics that the endpoint's autoscaler asks for."""
    missing = [
        group for group in ("metrics.k8s.io", "custom.metrics.k8s.io")
        if not cluster.group_versions(group)
    ]  # fmt: skip
    if missing:
        remedy = "install metrics-server, and prometheus-adapter (docs/kubernetes.md)"
        return Check("metrics", "warn", f"no {', '.join(missing)}", remedy)
    return Check("metrics", "ok", "CPU and custom metrics can be had")


def check_manifests(cluster: Cluster, namespace: str, overlay: str) -> Check:
    """A server-side dry run of every component: schemas, admission and quota have their say."""
    made = 0
    for component in COMPONENTS:
        for item in changed(render(overlay, component), component, Changes(namespace=namespace)):
            probe = {**item, "metadata": {**item["metadata"], "name": _probe_name(item)}}
            try:
                cluster.apply(probe, dry_run=True)
            except Missing as error:
                return Check("manifests", "fail", str(error), "see the checks above")
            except AccessError:
                raise
            except AalnetError as error:
                return Check("manifests", "fail", str(error), f"{title(item)} of {overlay}")
            made += 1
    return Check("manifests", "ok", f"the server takes all {made} objects of overlay {overlay}")


def _probe_name(item: Object) -> str:
    """No object's name: a dry run of a new one cannot conflict with what there is."""
    return f"{item['metadata']['name'][:40]}-probe"
