"""Is this cluster, and this user's way into it, fit for training and serving?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from aalnet.errors import AalnetError
from cluster.view.checks import Check
from deploy.operator.api import KubernetesApi
from deploy.operator.edits import edit_manifests
from deploy.operator.errors import AccessError, NotFound
from deploy.operator.objects import COMPONENTS, title
from deploy.operator.options import DeployOptions
from deploy.operator.render import render

OLDEST = (1, 30)  # preStop sleep of the endpoint
GPU = "nvidia.com/gpu"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
WRITE = ("get", "list", "create", "patch", "delete")
READ = ("get", "list")
# The Role aalnet-operator (deploy/kubernetes/base/namespace/operators.yaml) has it all.
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


def checks(api: KubernetesApi, namespace: str, overlay: str) -> Iterator[Check]:
    """All checks, each as soon as it is known. After a server that does not answer, no more."""
    first = _guarded("server", lambda: check_server(api))
    yield first
    if first.status == "fail":
        return
    todo: dict[str, Callable[[], Check]] = {
        "kuberay": lambda: check_kuberay(api),
        "namespace": lambda: check_namespace(api, namespace),
        "permissions": lambda: check_permissions(api, namespace),
        "storage class": lambda: check_storage_class(api),
        "gpu nodes": lambda: check_gpus(api, needed=overlay != "local"),
        "kueue": lambda: check_kueue(api, namespace, needed=overlay == "kueue"),
        "prometheus": lambda: check_prometheus(api),
        "metrics": lambda: check_metrics(api),
        "manifests": lambda: check_manifests(api, namespace, overlay),
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


def check_server(api: KubernetesApi) -> Check:
    """The API server's answer and version."""
    version = api.version()
    numbers = tuple(int(part) for part in version.lstrip("v").split(".")[:2])
    detail = f"{api.address}, Kubernetes {version}"
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return Check("server", "warn", detail, f"made for Kubernetes {oldest} and newer")
    return Check("server", "ok", detail)


def check_kuberay(api: KubernetesApi) -> Check:
    """KubeRay's kinds. Whether its version knows all our fields, the manifests' check tells."""
    remedy = "install KubeRay 1.7: helm install kuberay-operator kuberay/kuberay-operator"
    missing = {"RayJob", "RayService", "RayCluster"} - api.kinds("ray.io/v1")
    if missing:
        versions = ", ".join(api.group_versions("ray.io"))
        detail = f"no {', '.join(sorted(missing))} in ray.io/v1; it serves {versions or 'nothing'}"
        return Check("kuberay", "fail", detail, remedy)
    try:
        operators = api.find_all("Deployment", None, {"app.kubernetes.io/name": "kuberay-operator"})
    except AccessError:
        return Check("kuberay", "ok", "CRDs ray.io/v1; its operator is not ours to see")
    if not operators:
        detail = "CRDs ray.io/v1, and no Deployment labelled kuberay-operator"
        return Check("kuberay", "warn", detail, "is its operator running? RayJobs need it")
    image = operators[0]["spec"]["template"]["spec"]["containers"][0]["image"]
    detail = f"CRDs ray.io/v1, operator {image.rpartition('/')[2]}"
    if not operators[0].get("status", {}).get("availableReplicas", 0):
        return Check("kuberay", "fail", f"{detail}, not ready", "look at its pods and logs")
    return Check("kuberay", "ok", detail)


def check_namespace(api: KubernetesApi, namespace: str) -> Check:
    """The namespace and its Pod Security level."""
    item = api.find("Namespace", None, namespace)
    remedy = "kubectl apply --server-side -k deploy/kubernetes/overlays/OVERLAY/around"
    if item is None:
        return Check("namespace", "fail", f"{namespace} is missing", remedy)
    level = item["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce")
    if level != "restricted":
        detail = f"{namespace} enforces {level or 'no level'} of Pod Security"
        return Check("namespace", "warn", detail, remedy)
    return Check("namespace", "ok", f"{namespace}, Pod Security restricted")


def check_permissions(api: KubernetesApi, namespace: str) -> Check:
    """What `aalnet deploy` does, asked of the server one by one."""
    needed = [(verb, group, name) for (group, name), verbs in NEEDED.items() for verb in verbs]
    refused = [
        f"{verb} {name}" for verb, group, name in needed
        if not api.may(verb, group, name, namespace)
    ]  # fmt: skip
    if refused:
        detail = f"in {namespace} you may not {', '.join(refused)}"
        return Check("permissions", "fail", detail, "ask for the Role aalnet-operator")
    return Check("permissions", "ok", f"all {len(needed)} in {namespace}")


def check_storage_class(api: KubernetesApi) -> Check:
    """A default storage class; only the overlay `local` claims a volume."""
    classes = api.find_all("StorageClass")
    defaults = [
        item["metadata"]["name"] for item in classes
        if item["metadata"].get("annotations", {}).get(DEFAULT_CLASS) == "true"
    ]  # fmt: skip
    if not defaults:
        remedy = "the overlay `local` needs one for its S3 server; the others do not"
        return Check("storage class", "warn", f"{len(classes)}, none of them default", remedy)
    return Check("storage class", "ok", f"default {', '.join(defaults)}")


def check_gpus(api: KubernetesApi, *, needed: bool) -> Check:
    """Nodes that offer GPUs, and of what kind."""
    nodes = api.find_all("Node")
    counts = [int(node.get("status", {}).get("allocatable", {}).get(GPU, "0")) for node in nodes]
    products = {
        node["metadata"].get("labels", {}).get("nvidia.com/gpu.product", "unnamed")
        for node, count in zip(nodes, counts, strict=True) if count
    }  # fmt: skip
    if products:
        with_gpu = sum(count > 0 for count in counts)
        detail = (
            f"{sum(counts)} on {with_gpu} of {len(nodes)} nodes ({', '.join(sorted(products))})"
        )
        return Check("gpu nodes", "ok", detail)
    detail = f"no node of {len(nodes)} offers {GPU} now"
    if not needed:
        return Check("gpu nodes", "ok", detail)
    remedy = "fine where nodes come when pods wait (Karpenter); else add some, with NVIDIA's plugin"
    return Check("gpu nodes", "warn", detail, remedy)


def check_kueue(api: KubernetesApi, namespace: str, *, needed: bool) -> Check:
    """Kueue, and the queue that the overlay names."""
    versions = api.group_versions("kueue.x-k8s.io")
    if not versions:
        remedy = "install Kueue 0.19, or use another overlay"
        return Check("kueue", "fail" if needed else "ok", "not installed", remedy)
    items = api.find_all("LocalQueue", namespace, api_version=f"kueue.x-k8s.io/{versions[0]}")
    queues = [item["metadata"]["name"] for item in items]
    detail = f"{versions[0]}, queues in {namespace}: {', '.join(queues) or 'none'}"
    if needed and ("v1beta2" not in versions or not queues):
        remedy = "apply overlays/kueue/around; it needs v1beta2, of Kueue 0.19"
        return Check("kueue", "fail", detail, remedy)
    return Check("kueue", "ok", detail)


def check_prometheus(api: KubernetesApi) -> Check:
    """The Prometheus operator's kinds."""
    if {"PodMonitor", "PrometheusRule"} <= api.kinds("monitoring.coreos.com/v1"):
        return Check("prometheus", "ok", "PodMonitor and PrometheusRule are known")
    remedy = "install kube-prometheus-stack, or apply without base/monitoring"
    return Check("prometheus", "warn", "its operator's CRDs are missing", remedy)


def check_metrics(api: KubernetesApi) -> Check:
    """The metrics that the endpoint's autoscaler asks for."""
    missing = [
        group for group in ("metrics.k8s.io", "custom.metrics.k8s.io")
        if not api.group_versions(group)
    ]  # fmt: skip
    if missing:
        remedy = "install metrics-server, and prometheus-adapter (docs/kubernetes.md)"
        return Check("metrics", "warn", f"no {', '.join(missing)}", remedy)
    return Check("metrics", "ok", "CPU and custom metrics can be had")


def check_manifests(api: KubernetesApi, namespace: str, overlay: str) -> Check:
    """A server-side dry run of every component: schemas, admission and quota have their say."""
    count = 0
    for component in COMPONENTS:
        options = DeployOptions(namespace=namespace)
        for item in edit_manifests(render(overlay, component), component, options):
            # No object's name: a dry run of a new one cannot conflict with what there is.
            name = f"{item['metadata']['name'][:40]}-probe"
            try:
                api.apply({**item, "metadata": {**item["metadata"], "name": name}}, dry_run=True)
            except NotFound as error:
                return Check("manifests", "fail", str(error), "see the checks above")
            except AccessError:
                raise
            except AalnetError as error:
                return Check("manifests", "fail", str(error), f"{title(item)} of {overlay}")
            count += 1
    return Check("manifests", "ok", f"the server takes all {count} objects of overlay {overlay}")
