"""The Kubernetes API as this project uses it: objects as plain data in and out.

Nothing is cached but what kinds the server knows.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from kubernetes.client import ApiClient, Configuration
from kubernetes.config import ConfigException, load_incluster_config, load_kube_config
from yaml import YAMLError

from deploy.operator.answers import of_status
from deploy.operator.errors import AccessError, Missing
from deploy.operator.objects import MANAGER, Object, title
from deploy.operator.transport import CONNECT_S, Transport, lines_of

DEFAULT_KUBECONFIG = "~/.kube/config"
APPLY = "application/apply-patch+yaml"
GROUP_MISSING = {
    "ray.io": "install KubeRay (docs/kubernetes.md), or check --context",
    "kueue.x-k8s.io": "install Kueue, or use another overlay",
}


class Cluster:
    """One cluster, as one user. `warn` gets what the server warns of."""

    def __init__(self, client: ApiClient, warn: Callable[[str], None] = lambda _: None) -> None:
        self._http = Transport(client, warn)
        self._kinds: dict[str, dict[str, Object]] = {}
        self.address = self._http.address

    # Objects

    def get(self, api_version: str, kind: str, namespace: str | None, name: str) -> Object:
        """Raises Missing where there is none."""
        path = self._path(api_version, kind, namespace, name)
        return self._http.json("GET", path, f"read {kind}/{name}")

    def find(self, api_version: str, kind: str, namespace: str | None, name: str) -> Object | None:
        """As `get`; None where there is none."""
        with contextlib.suppress(Missing):
            return self.get(api_version, kind, namespace, name)
        return None

    def list(
        self, api_version: str, kind: str, namespace: str | None = None,
        labels: Mapping[str, str] | None = None, fields: Mapping[str, str] | None = None,
    ) -> list[Object]:  # fmt: skip
        """Objects whose labels and fields are these, each with its kind. None: every namespace."""
        query = [(key, ",".join(f"{k}={v}" for k, v in chosen.items()))
                 for key, chosen in (("labelSelector", labels), ("fieldSelector", fields))
                 if chosen]  # fmt: skip
        path = self._path(api_version, kind, namespace)
        items = (
            self._http.json("GET", path, f"list {path.rpartition('/')[2]}", query)["items"] or []
        )
        return [{"apiVersion": api_version, "kind": kind, **item} for item in items]

    def apply(
        self,
        item: Object,
        *,
        version: str | None = None,
        dry_run: bool = False,
        force: bool = False,
    ) -> Object:
        """Server-side apply; gives the object as it then is (or would be).

        Raises:
            Conflict: another manager owns a field, and `force` is off.
            Changed: the object is no longer at `version`.
        """
        metadata = item["metadata"]
        if version is not None:
            item = {**item, "metadata": {**metadata, "resourceVersion": version}}
        path = self._path(item["apiVersion"], item["kind"], metadata["namespace"], metadata["name"])
        query = [("fieldManager", MANAGER), ("force", str(force).lower()),
                 ("fieldValidation", "Strict")]  # fmt: skip
        query += [("dryRun", "All")] if dry_run else []
        return self._http.json("PATCH", path, f"apply {title(item)}", query, item, APPLY)

    def delete(self, item: Object) -> None:
        """Delete exactly this object, and in the background what it owns. Gone already is fine.

        Raises:
            Changed: it was deleted and made anew meanwhile.
        """
        metadata = item["metadata"]
        path = self._path(item["apiVersion"], item["kind"], metadata["namespace"], metadata["name"])
        body = {
            "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background",
            "preconditions": {"uid": metadata["uid"]},
        }  # fmt: skip
        with contextlib.suppress(Missing):
            self._http.json("DELETE", path, f"delete {title(item)}", (), body)

    def watch(self, item: Object, version: str, seconds: float) -> Iterator[tuple[str, Object]]:
        """Events of one object after `version`, bookmarks too, until `seconds` are over or the
        connection breaks.

        Raises:
            WatchExpired: the server has forgotten that version; read the object again.
        """
        metadata = item["metadata"]
        query = [
            ("watch", "true"), ("fieldSelector", f"metadata.name={metadata['name']}"),
            ("resourceVersion", version), ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", str(max(1, round(seconds)))),
        ]  # fmt: skip
        path = self._path(item["apiVersion"], item["kind"], metadata["namespace"])
        what = f"watch {title(item)}"
        with self._http.open("GET", path, what, query, read_s=seconds + CONNECT_S) as response:
            for line in lines_of(response):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise of_status(int(status.get("code", 500)), status, what)
                yield event["type"], event["object"]

    def log(
        self, pod: Object, container: str, *, follow: bool = False, tail: int | None = None,
        since: str | None = None,
    ) -> Iterator[bytes]:  # fmt: skip
        """Lines of a container's log, each with its time; ends where the connection breaks."""
        metadata = pod["metadata"]
        query = [("container", container), ("timestamps", "true")]
        query += [("follow", "true")] if follow else []
        query += [("tailLines", str(tail))] if tail is not None else []
        query += [("sinceTime", since)] if since is not None else []
        path = f"{self._path('v1', 'Pod', metadata['namespace'], metadata['name'])}/log"
        what = f"read the log of {metadata['name']}"
        with self._http.open("GET", path, what, query) as response:
            yield from lines_of(response)

    # The server

    def version(self) -> str:
        """`v1.34.1`"""
        return str(self._http.json("GET", "/version", "read the version")["gitVersion"])

    def kinds(self, api_version: str) -> dict[str, Object]:
        """What a group and version has, by kind. Raises Missing where the server lacks it."""
        if api_version not in self._kinds:
            prefix = "/api/" if "/" not in api_version else "/apis/"
            found = self._http.json("GET", prefix + api_version, f"look for {api_version}")
            self._kinds[api_version] = {
                resource["kind"]: resource
                for resource in found["resources"]
                if "/" not in resource["name"]
            }
        return self._kinds[api_version]

    def group_versions(self, group: str) -> Sequence[str]:
        """Versions of an API group that the server serves, the preferred one first."""
        try:
            found = self._http.json("GET", f"/apis/{group}", f"look for {group}")
        except Missing:
            return []
        return [version["version"] for version in found["versions"]]

    def may(self, verb: str, group: str, resource: str, namespace: str | None) -> bool:
        """Whether this user may, as the server sees it (SelfSubjectAccessReview)."""
        name, _, part = resource.partition("/")
        attributes = {"verb": verb, "group": group, "resource": name}
        attributes |= {"subresource": part} if part else {}
        attributes |= {"namespace": namespace} if namespace else {}
        review = {
            "apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": attributes},
        }  # fmt: skip
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        return bool(
            self._http.json("POST", path, "ask for permissions", (), review)["status"]["allowed"]
        )

    def _path(
        self, api_version: str, kind: str, namespace: str | None, name: str | None = None
    ) -> str:
        group = api_version.partition("/")[0]
        try:
            resource = self.kinds(api_version).get(kind)
        except Missing:
            resource = None
        if resource is None:
            move = GROUP_MISSING.get(group, "the cluster is older than this needs")
            raise Missing(f"the cluster has no {kind} ({api_version}); {move}")
        parts = ["api" if "/" not in api_version else "apis", *api_version.split("/")]
        if resource["namespaced"] and namespace is not None:
            parts += ["namespaces", namespace]
        parts += [resource["name"], *([name] if name is not None else [])]
        return "/" + "/".join(quote(part, safe="") for part in parts)


def connect(context: str | None, kubeconfig: Path | None, warn: Callable[[str], None]) -> Cluster:
    """The cluster of a kubeconfig's context; inside a pod without one, its own cluster.

    Raises:
        AccessError: no kubeconfig, or no such context, or its credentials cannot be had.
    """
    configuration = Configuration()
    configuration.retries = False  # `Cluster` asks again itself, and knows when
    try:
        load_kube_config(  # type: ignore[no-untyped-call]
            str(kubeconfig or os.environ.get("KUBECONFIG", DEFAULT_KUBECONFIG)), context,
            configuration, persist_config=False,
        )  # fmt: skip
    except (ConfigException, YAMLError, OSError, ValueError, TypeError, KeyError) as error:
        if kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
            load_incluster_config(client_configuration=configuration)  # type: ignore[no-untyped-call]
        else:
            raise AccessError(
                f"no way into a cluster: {' '.join(str(error).split())}; check --kubeconfig and "
                "--context (`kubectl config get-contexts`)"
            ) from error
    return Cluster(ApiClient(configuration), warn)
