"""Who may reach whom: every connection that is needed, and those that must not be."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.kubernetes_objects import Object, Pod, pods, render
from tests.support.network_rules import Peer, allowed


def peer_of(objects: list[Object], where: str) -> Peer:
    result: list[Pod] = [pod for pod in pods(objects) if pod.where == where]
    assert len(result) == 1, where
    return Peer(result[0].labels)


def elsewhere(namespace: str, labels: dict[str, str] | None = None, **spaces: str) -> Peer:
    return Peer(labels or {}, namespace, {key.replace("_", "-"): v for key, v in spaces.items()})


OPERATOR = elsewhere("kuberay", {"app.kubernetes.io/name": "kuberay-operator"})
PROMETHEUS = elsewhere("monitoring", {"app.kubernetes.io/name": "prometheus"})
DNS = elsewhere("kube-system", {"k8s-app": "kube-dns"})
CLIENT = elsewhere("shop", aalnet_client="true")
STRANGER = elsewhere("shop")
NEIGHBOUR = Peer({"app": "other"})  # a pod in our own namespace that is none of ours
S3 = Peer(address="52.216.1.1")
METADATA = Peer(address="169.254.169.254")
RANDOM_RAY_PORT = 17433


def world(overlay: str) -> dict[str, Peer]:
    objects = render(f"overlays/{overlay}")
    group = "cpu" if overlay == "local" else "gpu"
    result = {
        "head": peer_of(objects, "RayJob/aalnet-trainer head"),
        "worker": peer_of(objects, f"RayJob/aalnet-trainer {group}"),
        "submitter": peer_of(objects, "RayJob/aalnet-trainer submitter"),
    }
    if overlay == "rayservice":
        result["endpoint"] = peer_of(objects, "RayService/aalnet-endpoint cpu")
        result["serve head"] = peer_of(objects, "RayService/aalnet-endpoint head")
    else:
        result["endpoint"] = peer_of(objects, "Deployment/aalnet-endpoint")
    if overlay == "local":
        result["storage"] = peer_of(objects, "StatefulSet/aalnet-storage")
    return result | {
        "operator": OPERATOR, "prometheus": PROMETHEUS, "dns": DNS, "client": CLIENT,
        "stranger": STRANGER, "neighbour": NEIGHBOUR, "s3": S3, "metadata": METADATA,
        "api": Peer(address="10.100.0.1"),
    }  # fmt: skip


# overlay (or * for each), from, to, port, may it?
TABLE: list[tuple[str, str, str, int, bool]] = [
    # Ray
    ("*", "worker", "head", 6379, True),
    ("*", "head", "worker", RANDOM_RAY_PORT, True),
    ("*", "worker", "worker", RANDOM_RAY_PORT, True),
    ("*", "submitter", "head", 8265, True),
    ("*", "submitter", "head", 6379, False),
    ("*", "submitter", "worker", RANDOM_RAY_PORT, False),
    ("*", "operator", "head", 8265, True),
    ("*", "operator", "head", 6379, False),
    ("*", "operator", "worker", RANDOM_RAY_PORT, False),
    ("rayservice", "operator", "serve head", 8265, True),
    ("rayservice", "operator", "endpoint", 8000, True),
    ("*", "head", "api", 443, True),
    ("*", "head", "api", 6443, True),
    ("*", "worker", "api", 6443, False),
    ("*", "submitter", "api", 443, False),
    ("*", "stranger", "neighbour", 8080, False),
    # nobody else comes to Ray
    *[("*", who, "head", port, False)
      for who in ("stranger", "neighbour", "client") for port in (6379, 8265, 10001, 8080, 9464)],
    ("aws", "endpoint", "head", 8265, False),
    ("local", "endpoint", "head", 6379, False),
    ("*", "stranger", "worker", RANDOM_RAY_PORT, False),
    # the endpoint
    ("*", "client", "endpoint", 8000, True),
    ("*", "stranger", "endpoint", 8000, False),
    ("*", "neighbour", "endpoint", 8000, False),
    ("aws", "worker", "endpoint", 8000, False),
    ("*", "client", "endpoint", 9000, False),
    # storage and names
    *[("aws", who, "s3", 443, True) for who in ("head", "worker", "endpoint")],
    ("*", "submitter", "s3", 443, False),
    ("*", "neighbour", "s3", 443, False),
    ("*", "worker", "s3", 80, False),
    *[("*", who, "metadata", port, False) for who in ("worker", "endpoint") for port in (80, 443)],
    ("*", "head", "metadata", 80, False),
    *[("local", who, "storage", 8333, True) for who in ("head", "worker", "endpoint")],
    *[("local", who, "storage", 8333, False) for who in ("submitter", "neighbour", "stranger")],
    *[("local", who, "storage", 9333, False) for who in ("head", "worker", "endpoint")],
    ("local", "storage", "s3", 443, False),
    # Prometheus
    *[("*", "prometheus", "head", port, True) for port in (8080, 44217, 44227, 9464)],
    ("*", "prometheus", "worker", 8080, True),
    ("*", "prometheus", "endpoint", 8000, True),
    ("*", "prometheus", "head", 8265, False),
    ("*", "prometheus", "head", 6379, False),
]  # fmt: skip


@pytest.mark.parametrize("overlay", ["local", "aws", "kueue", "rayservice"])
def test_who_may_reach_whom(overlay: str) -> None:
    policies = [item for item in render(f"overlays/{overlay}") if item["kind"] == "NetworkPolicy"]
    peers = world(overlay)
    wrong = [
        (source, target, port, expected)
        for which, source, target, port, expected in TABLE
        if which in ("*", overlay)
        and allowed(policies, peers[source], peers[target], port) is not expected
    ]
    assert wrong == []
    asking = [name for name in peers if peers[name].namespace == "aalnet"]
    for name in asking:
        if peers[name].address is None:
            assert allowed(policies, peers[name], DNS, 53, "UDP"), name
            assert not allowed(policies, peers[name], STRANGER, 8080), name


POLICIES = (
    "default-deny", "dns", "ray-nodes", "ray-jobs", "submitter", "autoscaler", "storage",
    "endpoint", "scrape-endpoint", "scrape-ray", "scrape-heads",
)  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_counts(policy: str) -> None:
    """Without any one of them the table does not hold (or a name cannot be looked up)."""
    every = [item for item in render("overlays/aws") if item["kind"] == "NetworkPolicy"]
    assert {item["metadata"]["name"] for item in every} == set(POLICIES)
    others = [item for item in every if item["metadata"]["name"] != policy]
    peers = world("aws")

    def answers(policies: list[Object]) -> list[Any]:
        rows = [row for row in TABLE if row[0] in ("*", "aws")]
        answers_of_rows = [allowed(policies, peers[a], peers[b], port) for _, a, b, port, _ in rows]
        return [*answers_of_rows, allowed(policies, peers["worker"], DNS, 53, "UDP")]

    assert answers(others) != answers(every)


def test_the_evaluator_itself() -> None:
    deny = {"metadata": {"namespace": "a", "name": "deny"}, "spec": {"podSelector": {}}}
    mine, other = Peer({"app": "x"}, "a"), Peer({"app": "y"}, "b", {"team": "z"})
    assert allowed([], other, mine, 80)
    assert not allowed([deny], other, mine, 80)  # policyTypes: Ingress by default
    assert allowed([deny], mine, other, 80)
    rule = {"from": [{"namespaceSelector": {"matchLabels": {"team": "z"}}}],
            "ports": [{"port": 80, "endPort": 90}]}  # fmt: skip
    let = {**deny, "spec": {"podSelector": {"matchLabels": {"app": "x"}}, "ingress": [rule]}}
    assert allowed([deny, let], other, mine, 85)
    assert not allowed([deny, let], other, mine, 91)
    assert not allowed([deny, let], other, mine, 85, "UDP")
    assert not allowed([deny, let], Peer({}, "c"), mine, 85)
