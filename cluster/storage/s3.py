"""A store in an S3 bucket, over boto3: AWS, or any server named by `AWS_ENDPOINT_URL`.

Credentials, region, endpoint and checksums come by the usual AWS chain (environment, files,
instance or pod identity), never from settings. Large blobs go in parts, several at once.
"""

from __future__ import annotations

import contextlib
import io
import random
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionError,
    HTTPClientError,
    IncompleteReadError,
    NoCredentialsError,
    PartialCredentialsError,
    ResponseStreamingError,
)
from urllib3.exceptions import HTTPError, ProtocolError  # botocore lets some through

from aalnet.errors import AalnetError, ConfigError
from cluster.storage.s3_client import AT_ONCE, make_client
from cluster.storage.store import (
    BlobExists,
    BlobMissing,
    BlobTooLarge,
    Entry,
    StoreError,
    StoreUnavailable,
    checked_key,
    within,
)

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PART_BYTES = 2**24
WHOLE_BYTES = 2**26  # a smaller blob goes up in one request, not in parts, begin and end
CONFLICTS, CUTS = 5, 4  # tries of a put that met another; of a body that broke off half-way
CUT = (ProtocolError, IncompleteReadError, ResponseStreamingError)
T = TypeVar("T")
MISSING = frozenset({"NoSuchKey", "404", "NotFound"})
TAKEN = frozenset({"PreconditionFailed", "412"})
UNUSABLE = {
    "NoSuchBucket": "create the bucket first",
    "AccessDenied": "the credentials lack a right: get, put, list and delete are needed",
    "403": "check the credentials and their rights",
    "InvalidAccessKeyId": "check the credentials (AWS_ACCESS_KEY_ID, AWS_PROFILE)",
    "SignatureDoesNotMatch": "check the credentials (AWS_SECRET_ACCESS_KEY, AWS_PROFILE)",
    "InvalidBucketName": "check --storage",
    "PermanentRedirect": "set AWS_REGION to the bucket's region",
    "AuthorizationHeaderMalformed": "set AWS_REGION to the bucket's region",
}


class S3Store:
    """Blobs of `s3://bucket/prefix`. Safe to use from several threads."""

    appends = False

    def __init__(self, uri: str) -> None:
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        if not bucket or "?" in uri:
            raise ConfigError(
                f"storage `{uri}` must be s3://bucket/prefix; name an endpoint by AWS_ENDPOINT_URL"
            )
        self.bucket = bucket
        self.prefix = f"{checked_key(prefix).strip('/')}/".lstrip("/")
        self.uri = f"s3://{bucket}/{self.prefix}".rstrip("/")
        self._up = TransferConfig(WHOLE_BYTES, AT_ONCE, PART_BYTES)  # in parts from, at once, each
        self._down = TransferConfig(PART_BYTES, AT_ONCE, PART_BYTES)

    @cached_property
    def client(self) -> S3Client:
        """The boto3 client; made at first use."""
        with self._failing("the storage"):
            return make_client()

    def read(self, key: str, limit_bytes: int | None = None) -> bytes:
        """One get, or parts of 16 MiB at once. Raises BlobMissing, BlobTooLarge."""

        def small(answer: Any) -> bytes | None:
            length = answer["ContentLength"]
            if limit_bytes is not None and length > limit_bytes:
                raise BlobTooLarge(f"`{key}` is larger than the {limit_bytes:,} bytes it may have")
            return _body(answer) if length <= PART_BYTES else None

        with self._failing(key):
            data = self._got(small, Key=self._key(key))
            if data is not None:
                return within(data, limit_bytes, key)
            whole = io.BytesIO()
            self.client.download_fileobj(self.bucket, self._key(key), whole, Config=self._down)
            return within(whole.getvalue(), limit_bytes, key)

    def read_range(self, key: str, start: int, length: int) -> bytes:
        """One range request; b"" beyond the blob's end. Raises BlobMissing."""
        if length <= 0:
            return b""
        byte_range = f"bytes={start}-{start + length - 1}"
        with self._failing(key):
            try:
                return self._got(_body, Key=self._key(key), Range=byte_range)
            except ClientError as error:
                if _code(error) in {"InvalidRange", "416"}:
                    return b""
                raise

    def size(self, key: str) -> int:
        """One head request. Raises BlobMissing."""
        with self._failing(key):
            return self.client.head_object(Bucket=self.bucket, Key=self._key(key))["ContentLength"]

    def write(self, key: str, data: bytes) -> None:
        """One put; from 64 MiB on parts of 16 MiB, which appear together."""
        with self._failing(key):
            try:
                _again(lambda: self.client.upload_fileobj(
                    io.BytesIO(data), self.bucket, self._key(key), Config=self._up
                ))  # fmt: skip
            except (Boto3Error, ClientError) as error:
                # The reply to the last request was lost, and its second try found it done.
                if "NoSuchUpload" in str(error) and self._holds(key, data):
                    return
                raise

    def create(self, key: str, data: bytes) -> None:
        """One conditional put (If-None-Match: *), tried again on a 409. Raises BlobExists."""
        with self._failing(key):
            for attempt in range(CONFLICTS):
                try:
                    self.client.put_object(
                        Bucket=self.bucket, Key=self._key(key), Body=data, IfNoneMatch="*"
                    )
                    return
                except ClientError as error:
                    if _code(error) in TAKEN:
                        if self._holds(key, data):
                            return
                        raise BlobExists(f"`{key}` exists in {self.uri} already") from error
                    if _code(error) not in {"ConditionalRequestConflict", "409"}:
                        raise
                    time.sleep(random.uniform(0, 0.1 * 2**attempt))
        raise StoreError(f"`{key}` in {self.uri}: other writers kept this one from being written")

    def append(self, key: str, data: bytes) -> None:
        """Raises StoreError: nothing can be added to an object (see log_file.py)."""
        raise StoreError(f"`{key}` in {self.uri}: an object store cannot append")

    def entries(self, prefix: str = "") -> list[Entry]:
        """A list request for each 1,000 blobs."""
        pages = self._pages("list_objects_v2", Prefix=self._key(prefix))
        entries = [
            Entry(item["Key"][len(self.prefix) :], item["Size"], item["LastModified"].timestamp())
            for page in pages
            for item in page.get("Contents", [])
        ]
        return sorted(entries, key=lambda entry: entry.key)

    def keys(self, prefix: str = "") -> list[str]:
        """As `entries`."""
        return [entry.key for entry in self.entries(prefix)]

    def folders(self, prefix: str = "") -> list[str]:
        """Common prefixes, listed up to the next `/`."""
        pages = self._pages("list_objects_v2", Prefix=self._key(prefix), Delimiter="/")
        names = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", [])]
        return sorted(name.rstrip("/").rpartition("/")[2] for name in names)

    def delete(self, key: str) -> None:
        """One delete request; a missing blob is fine."""
        with self._failing(key), contextlib.suppress(BlobMissing):
            self.client.delete_object(Bucket=self.bucket, Key=self._key(key))

    def sweep(self, prefix: str, older_than_s: float, *, dry_run: bool = False) -> list[str]:
        """Abort multipart uploads that nobody has finished; gives their keys."""
        before_s = time.time() - older_than_s
        pages = self._pages("list_multipart_uploads", Prefix=self._key(prefix))
        uploads = [upload for page in pages for upload in page.get("Uploads", [])]
        unfinished = [upload for upload in uploads if upload["Initiated"].timestamp() <= before_s]
        for upload in [] if dry_run else unfinished:
            with self._failing(upload["Key"]), contextlib.suppress(BlobMissing):
                self.client.abort_multipart_upload(
                    Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"]
                )
        return sorted(upload["Key"][len(self.prefix) :] for upload in unfinished)

    def _key(self, key: str) -> str:
        return self.prefix + checked_key(key).lstrip("/")

    def _got(self, use: Callable[[Any], T], **arguments: Any) -> T:
        """What `use` makes of the answer to a get."""

        def get() -> T:
            answer = self.client.get_object(Bucket=self.bucket, **arguments)
            with contextlib.closing(answer["Body"]):
                return use(answer)

        return _again(get)

    def _holds(self, key: str, data: bytes) -> bool:
        try:
            return self.size(key) == len(data) and self.read(key) == data
        except BlobMissing:
            return False

    def _pages(self, operation: Any, **arguments: Any) -> list[Any]:
        with self._failing(arguments["Prefix"]):
            pages = self.client.get_paginator(operation)
            return _again(lambda: list(pages.paginate(Bucket=self.bucket, **arguments)))

    @contextlib.contextmanager
    def _failing(self, key: str) -> Iterator[None]:
        """Turn what boto3 raises into the store's errors."""
        try:
            yield
        except AalnetError:  # some are a ValueError too
            raise
        except ClientError as error:
            raise self._explain(error, key) from error
        except (NoCredentialsError, PartialCredentialsError) as error:
            raise StoreUnavailable(
                f"storage {self.uri}: no AWS credentials found; set AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or give this machine a role"
            ) from error
        except (ConnectionError, HTTPClientError, HTTPError) as error:
            raise StoreError(f"storage {self.uri} cannot be reached: {error}") from error
        except (BotoCoreError, Boto3Error, OSError) as error:
            inner = error.__cause__ or error.__context__
            if isinstance(inner, ClientError):
                raise self._explain(inner, key) from error
            raise StoreError(f"storage {self.uri}, `{key}`: {error}") from error
        except ValueError as error:  # an endpoint that is no URL
            raise StoreUnavailable(
                f"storage {self.uri}: {error}; check AWS_ENDPOINT_URL"
            ) from error

    def _explain(self, error: ClientError, key: str) -> StoreError:
        code = _code(error)
        if code in MISSING:
            return BlobMissing(f"`{key}` does not exist in {self.uri}")
        if code in UNUSABLE:
            reason = error.response.get("Error", {}).get("Message") or code
            return StoreUnavailable(f"storage {self.uri}: {reason}; {UNUSABLE[code]}")
        return StoreError(f"storage {self.uri}, `{key}`: {error}")


def _again(act: Callable[[], T]) -> T:
    """What `act` gives, tried again where an answer was cut on the way."""
    for attempt in range(CUTS - 1):
        try:
            return act()
        except CUT:
            time.sleep(random.uniform(0, 0.2 * 2**attempt))
    return act()


def _body(answer: Any) -> bytes:
    return bytes(answer["Body"].read())


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))
