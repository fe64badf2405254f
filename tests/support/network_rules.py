"""NetworkPolicies, worked out as the network plug-in does: may this pod reach that port?"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.support.kubernetes_objects import Object
from tests.support.kubernetes_references import matches


@dataclass(frozen=True)
class Peer:
    """One end of a connection: a pod of a namespace, or an address outside the cluster."""

    labels: dict[str, str] = field(default_factory=dict)
    namespace: str = "aalnet"
    namespace_labels: dict[str, str] = field(default_factory=dict)
    address: str | None = None

    @property
    def spaces(self) -> dict[str, str]:
        return {"kubernetes.io/metadata.name": self.namespace} | self.namespace_labels


def allowed(
    policies: list[Object], source: Peer, target: Peer, port: int, protocol: str = "TCP"
) -> bool:
    """Both ends must agree; an end that no policy selects agrees to everything."""
    return _agrees(policies, "Egress", source, target, port, protocol) and _agrees(
        policies, "Ingress", target, source, port, protocol
    )


def _agrees(
    policies: list[Object], way: str, own: Peer, other: Peer, port: int, protocol: str
) -> bool:
    if own.address is not None:
        return True
    selecting = [policy for policy in policies if _selects(policy, way, own)]
    rules = [rule for policy in selecting for rule in _rules(policy, way)]
    return not selecting or any(_fits(rule, way, own, other, port, protocol) for rule in rules)


def _selects(policy: Object, way: str, own: Peer) -> bool:
    spec = policy["spec"]
    default = ["Ingress", *(["Egress"] if "egress" in spec else [])]
    return (
        policy["metadata"]["namespace"] == own.namespace
        and way in spec.get("policyTypes", default)
        and matches(spec["podSelector"], own.labels)
    )


def _rules(policy: Object, way: str) -> Iterator[Object]:
    yield from policy["spec"].get(way.lower()) or []


def _fits(rule: Object, way: str, own: Peer, other: Peer, port: int, protocol: str) -> bool:
    ports = rule.get("ports")
    if ports and not any(_port_fits(rule_port, port, protocol) for rule_port in ports):
        return False
    peers = rule.get("from" if way == "Ingress" else "to")
    return not peers or any(_peer_fits(peer, own, other) for peer in peers)


def _port_fits(rule_port: Object, port: int, protocol: str) -> bool:
    if rule_port.get("protocol", "TCP") != protocol:
        return False
    first = rule_port.get("port", port)
    return bool(first <= port <= rule_port.get("endPort", first))


def _peer_fits(peer: Object, own: Peer, other: Peer) -> bool:
    if block := peer.get("ipBlock"):
        if other.address is None:
            return False
        address = ipaddress.ip_address(other.address)
        inside = [ipaddress.ip_network(item) for item in (block["cidr"], *block.get("except", []))]
        return address in inside[0] and not any(address in item for item in inside[1:])
    if other.address is not None:
        return False
    if "namespaceSelector" in peer:
        if not matches(peer["namespaceSelector"], other.spaces):
            return False
    elif own.namespace != other.namespace:
        return False
    return matches(peer.get("podSelector", {}), other.labels)
