"""HttpError: a request that is answered with an error, in one form everywhere."""

from __future__ import annotations

from aalnet.errors import AalnetError


class HttpError(AalnetError):
    """Why a request is not served: an HTTP status, one word for metrics, a line for people."""

    def __init__(
        self, status: int, reason: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, str]:
        """The JSON of the answer."""
        return {"reason": self.reason, "message": str(self)}

    def headers(self) -> dict[str, str]:
        """Retry-After and WWW-Authenticate where they belong."""
        headers = {} if self.retry_after_s is None else {
            "retry-after": str(max(1, round(self.retry_after_s)))
        }  # fmt: skip
        if self.status == 401:
            headers["www-authenticate"] = "Bearer"
        return headers
