"""API keys from a mounted file, and how often each may be used."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aalnet.errors import ConfigError
from deploy.endpoint.errors import HttpError
from deploy.endpoint.settings import EndpointSettings

LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,62}):([0-9a-f]{64})")
LOOK_EVERY_S = 1.0
ANONYMOUS = "anonymous"
log = logging.getLogger("aalnet.endpoint")


def hash_key(key: str) -> str:
    """What stands in the file for a key: keys are long and random, so no salt is needed."""
    return hashlib.sha256(key.encode()).hexdigest()


def parse_keys(text: str, name: str) -> dict[str, str]:
    """Digests by the names of their holders, from lines `name:sha256hex`; `#` starts a comment.

    Raises:
        ConfigError: a line is malformed, a name comes twice, or there is no key at all.
    """
    digests: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        line = line.partition("#")[0].strip()
        if not line:
            continue
        matched = LINE.fullmatch(line)
        if matched is None or matched[1] in digests:  # the line itself stays out of logs
            raise ConfigError(
                f"line {number} of `{name}` must be `name:sha256hex` with a new name; make one "
                "with `aalnet serve --hash-key`"
            )
        digests[matched[1]] = matched[2]
    if not digests:
        raise ConfigError(f"`{name}` holds no key; make one with `aalnet serve --hash-key`")
    return digests


class Keys:
    """The keys of a file, read again when it changes. Without a file everybody may call."""

    def __init__(self, path: Path | None) -> None:
        """Raises ConfigError where the file cannot be read or is malformed."""
        self.path = path
        self._looked_at_s = time.monotonic()
        self._identity: tuple[int, int, int] | None = None
        self._digests: dict[str, str] = {}
        if path is not None:
            self._identity, self._digests = self._read(path)

    def caller(self, headers: Mapping[bytes, bytes]) -> str:
        """The name of who calls. Every key is compared, in constant time.

        Raises:
            HttpError: there is no key in the headers, or a wrong one.
        """
        if self.path is None:
            return ANONYMOUS
        self._reload()
        scheme, _, key = headers.get(b"authorization", b"").partition(b" ")
        digest = hashlib.sha256(key.strip()).hexdigest()
        matches = [name for name, expected in self._digests.items() if _same(digest, expected)]
        if scheme.lower() != b"bearer" or not matches:
            raise HttpError(401, "key", "send `Authorization: Bearer KEY` with a valid key")
        return matches[0]

    def _reload(self) -> None:
        now_s = time.monotonic()
        if self.path is None or now_s - self._looked_at_s < LOOK_EVERY_S:
            return
        self._looked_at_s = now_s
        try:
            if _identity(self.path) != self._identity:
                self._identity, self._digests = self._read(self.path)
                log.info("read %d API keys again", len(self._digests))
        except (ConfigError, OSError) as error:
            log.error("the API keys stay as they were: %s", error)

    @staticmethod
    def _read(path: Path) -> tuple[tuple[int, int, int], dict[str, str]]:
        try:
            identity = _identity(path)
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"keys file `{path}` cannot be read: {error}") from error
        return identity, parse_keys(text, str(path))


def _same(digest: str, known: str) -> bool:
    return hmac.compare_digest(digest, known)


def _identity(path: Path) -> tuple[int, int, int]:
    facts = path.stat()  # follows links: Kubernetes swaps a link to bring in a new secret
    return facts.st_ino, facts.st_mtime_ns, facts.st_size


@dataclass
class _Bucket:
    tokens: float
    filled_at_s: float = field(default_factory=time.monotonic)


class Rates:
    """A token bucket per API key. Who calls without keys is on loopback, and not limited."""

    def __init__(self, settings: EndpointSettings) -> None:
        self._per_s, self._burst = settings.rate_per_s, settings.rate_burst
        self._buckets: dict[str, _Bucket] = {}
        self._lock = threading.Lock()

    def take(self, caller: str) -> None:
        """Spend one request. Raises HttpError where none is left."""
        if caller == ANONYMOUS:
            return
        with self._lock:
            bucket = self._buckets.setdefault(caller, _Bucket(self._burst))
            now_s = time.monotonic()
            earned = (now_s - bucket.filled_at_s) * self._per_s
            bucket.tokens = min(self._burst, bucket.tokens + earned)
            bucket.filled_at_s = now_s
            if bucket.tokens < 1:
                wait_s = (1 - bucket.tokens) / self._per_s
                raise HttpError(429, "rate", "this key calls too often", retry_after_s=wait_s)
            bucket.tokens -= 1
