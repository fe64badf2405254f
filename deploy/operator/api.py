"""The Kubernetes API as this project uses it: objects as plain data in and out.

`kubernetes.dynamic` makes the requests and applies on the server's side; urllib3 repeats them.
Two of its pieces are not used. Its discovery asks 2 requests at the start and 21 more for the first
Pod (every group with a `v1`, of 21 groups), and keeps the answers in a file in /tmp whose name
anybody can guess; `API_VERSIONS` says the same without a request. Its watch takes no read timeout:
with timeout=1 and a peer that went silent it still hung after 8 s. A workload is asked for instead,
together with its pods, which a watch of it would not save (status.py, wait.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from kubernetes.client import ApiClient, ApiException, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from kubernetes.dynamic import DynamicClient, Resource
from urllib3 import BaseHTTPResponse, Retry
from urllib3.exceptions import HTTPError
from yaml import YAMLError

from deploy.operator.errors import RETRIED_CODES, AccessError, NotFound, Unreachable, refusal
from deploy.operator.objects import API_VERSIONS, CLUSTER_SCOPED, MANAGER, Object, title

CONNECT_S, READ_S = 10.0, 60.0
# Every request may be sent twice: reads, server-side applies, deletions of one very object.
# Before the tries: 0, 1, 2 and 4 s, or what the server says. A TLS error (`other`) does not mend.
RETRIES = Retry(
    total=4, other=0, allowed_methods=None, status_forcelist=RETRIED_CODES, backoff_factor=0.5,
    retry_after_max=30, raise_on_status=False,
)  # fmt: skip
DEFAULT_KUBECONFIG = "~/.kube/config"
MISSING_GROUPS = {
    "ray.io": "install KubeRay (docs/kubernetes.md), or check --context",
    "kueue.x-k8s.io": "install Kueue, or use another overlay",
}


class KubernetesApi:
    """One cluster, as one user. `warn` gets what the server warns of.

    Methods raise AccessError, ManifestError or a KubernetesError, each one line with the next move.
    """

    def __init__(self, client: ApiClient, warn: Callable[[str], None] = lambda _: None) -> None:
        client.user_agent = MANAGER
        self._client = DynamicClient(client, discoverer=lambda *_: None)
        self._warn = warn
        self.address: str = client.configuration.host

    # Objects

    def find(self, kind: str, namespace: str | None, name: str) -> Object | None:
        """The object; None where there is none."""
        resource = self._resource(kind)
        try:
            return self._json(f"read {kind}/{name}", resource.get, resource, name=name,
                              namespace=namespace)  # fmt: skip
        except NotFound:
            return None

    def find_again(self, item: Object) -> Object | None:
        """The object of this kind and name as it is now; None where there is none."""
        metadata = item["metadata"]
        return self.find(item["kind"], metadata["namespace"], metadata["name"])

    def find_all(
        self, kind: str, namespace: str | None = None, labels: Mapping[str, str] | None = None,
        fields: Mapping[str, str] | None = None, api_version: str | None = None,
    ) -> list[Object]:  # fmt: skip
        """Objects whose labels and fields are these, each with its kind. None: every namespace.

        Raises:
            NotFound: the cluster has no such kind.
        """
        resource = self._resource(kind, api_version)
        answer = self._json(
            f"list {resource.name}", resource.get, resource, namespace=namespace,
            label_selector=_selector(labels), field_selector=_selector(fields),
        )  # fmt: skip
        return [{"apiVersion": resource.group_version, "kind": kind, **item}
                for item in answer["items"] or []]  # fmt: skip

    def apply(
        self, item: Object, *, version: str | None = None, dry_run: bool = False,
        force: bool = False,
    ) -> Object:  # fmt: skip
        """Server-side apply; gives the object as it then is (or would be).

        Raises:
            FieldConflict: another manager owns a field, and `force` is off.
            ObjectChanged: the object is no longer at `version`.
        """
        if version is not None:
            item = {**item, "metadata": {**item["metadata"], "resourceVersion": version}}
        resource = self._resource(item["kind"])
        return self._json(
            f"apply {title(item)}", resource.server_side_apply, resource, body=item,
            field_manager=MANAGER, force_conflicts=force, dry_run="All" if dry_run else None,
            query_params=[("fieldValidation", "Strict")],
        )  # fmt: skip

    def delete(self, item: Object) -> None:
        """Delete exactly this object, and in the background what it owns. Gone already is fine.

        Raises:
            ObjectChanged: it was deleted and made anew meanwhile.
        """
        metadata, resource = item["metadata"], self._resource(item["kind"])
        body = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
                "preconditions": {"uid": metadata["uid"]}}  # fmt: skip
        try:
            self._send(f"delete {title(item)}", resource.delete, resource, body=body,
                       name=metadata["name"], namespace=metadata["namespace"])  # fmt: skip
        except NotFound:
            return

    def log(
        self, pod: Object, container: str, *, follow: bool = False, tail: int | None = None,
        since: str | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """Lines of a container's log, each with its time; ends where the connection breaks."""
        metadata, resource = pod["metadata"], self._resource("Pod")
        path = resource.path(name=metadata["name"], namespace=metadata["namespace"])
        options = {"container": container, "timestamps": "true", "tailLines": tail,
                   "sinceTime": since, "follow": "true" if follow else None}  # fmt: skip
        query = [(key, value) for key, value in options.items() if value is not None]
        response = self._send(f"read the log of {metadata['name']}", self._client.request, resource,
                              method="get", path=f"{path}/log", query_params=query)  # fmt: skip
        try:
            yield from response
        except HTTPError:  # half a line is not one
            return
        finally:
            response.close()

    # The server

    def version(self) -> str:
        """`v1.34.1`"""
        return str(self._get("read the version", "/version")["gitVersion"])

    def kinds(self, api_version: str) -> set[str]:
        """What kinds a group and version has; none where the server lacks it."""
        try:
            answer = self._get(f"look for {api_version}", f"/apis/{api_version}")
        except NotFound:
            return set()
        return {resource["kind"] for resource in answer["resources"]}

    def group_versions(self, group: str) -> list[str]:
        """Versions of an API group that the server serves, the preferred one first."""
        try:
            answer = self._get(f"look for {group}", f"/apis/{group}")
        except NotFound:
            return []
        return [version["version"] for version in answer["versions"]]

    def may(self, verb: str, group: str, resource: str, namespace: str | None) -> bool:
        """Whether this user may, as the server sees it (SelfSubjectAccessReview)."""
        name, _, subresource = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": name, "subresource": subresource,
                      "namespace": namespace or ""}  # fmt: skip
        reviews = self._resource("SelfSubjectAccessReview")
        review = {"apiVersion": reviews.group_version, "kind": reviews.kind,
                  "spec": {"resourceAttributes": attributes}}  # fmt: skip
        answer = self._json("ask for permissions", reviews.create, reviews, body=review)
        return bool(answer["status"]["allowed"])

    # Requests

    def _resource(self, kind: str, api_version: str | None = None) -> Resource:
        group, _, version = (api_version or API_VERSIONS[kind]).rpartition("/")
        plural = f"{kind.lower()}{'es' if kind.endswith('s') else 's'}"
        return Resource(
            prefix="apis" if group else "api", group=group, api_version=version, kind=kind,
            name=plural, namespaced=kind not in CLUSTER_SCOPED, client=self._client,
        )  # fmt: skip

    def _get(self, request: str, path: str) -> Object:
        return self._json(request, self._client.request, None, method="get", path=path)

    def _json(
        self, request: str, send: Callable[..., Any], resource: Resource | None, **options: Any
    ) -> Object:
        response = self._send(request, send, resource, **options)
        try:
            answer: Object = json.loads(response.data)
        except (HTTPError, ValueError) as error:
            raise Unreachable(f"{request}: the answer broke off: {error}; try again") from error
        return answer

    def _send(
        self, request: str, send: Callable[..., Any], resource: Resource | None, **options: Any
    ) -> BaseHTTPResponse:
        """A good answer, still to be read. `send` is a method of the dynamic client."""
        try:
            response: BaseHTTPResponse = send(
                **options, serialize=False, _request_timeout=(CONNECT_S, READ_S)
            )
        except ApiException as error:
            if not error.status:  # TLS
                raise self._unreachable(request, error) from error
            raise refusal(error, request, _missing_kind(request, resource)) from error
        except HTTPError as error:
            raise self._unreachable(request, error) from error
        for warning in response.headers.getlist("Warning"):
            self._warn(warning.partition('"')[2].rstrip('"'))
        return response

    def _unreachable(self, request: str, error: Exception) -> Unreachable:
        reason = " ".join(str(getattr(error, "reason", None) or error).split())[:200]
        return Unreachable(f"{request}: {self.address} cannot be reached: {reason}")


def connect(
    context: str | None, kubeconfig: Path | None, warn: Callable[[str], None]
) -> KubernetesApi:
    """The cluster of a kubeconfig's context; inside a pod without one, its own cluster.

    Raises:
        AccessError: no kubeconfig, or no such context, or its credentials cannot be had.
    """
    configuration = Configuration()
    configuration.retries = RETRIES
    configuration.logger["urllib3_logger"].setLevel("ERROR")  # each retry is a warning there
    path = str(kubeconfig or os.environ.get("KUBECONFIG", DEFAULT_KUBECONFIG))
    try:
        load_kube_config(path, context, configuration, persist_config=False)
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(client_configuration=configuration)
        else:
            raise AccessError(
                f"no way into a cluster: {' '.join(str(error).split())}; check --kubeconfig and "
                "--context (`kubectl config get-contexts`)"
            ) from error
    return KubernetesApi(ApiClient(configuration), warn)


def _selector(pairs: Mapping[str, str] | None) -> str | None:
    return ",".join(f"{key}={value}" for key, value in pairs.items()) if pairs else None


def _missing_kind(request: str, resource: Resource | None) -> str:
    if resource is None:
        return f"{request}: the cluster has none"
    remedy = MISSING_GROUPS.get(resource.group, "the cluster is older than this needs")
    return f"the cluster has no {resource.kind} ({resource.group_version}); {remedy}"
