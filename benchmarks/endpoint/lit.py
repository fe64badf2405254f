"""The sampler in LitServe's hooks; a module of its own, since LitServe sends it to its workers."""

from typing import Any

import litserve
import torch
from fastapi import Request, Response

from benchmarks.endpoint.plain_model import PlainModel


class Api(litserve.LitAPI):
    """Decodes, batches, draws and encodes."""

    storage: str
    run: str

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = PlainModel(self.storage, self.run)

    def decode_request(self, request: Request) -> tuple[torch.Tensor, int, int]:
        """Condition, seed, samples."""
        condition = self.model.condition(request["image"].file.read())
        return condition, int(request["seed"]), int(request["num_samples"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        """As they are."""
        return inputs

    def predict(self, inputs: Any) -> Any:
        """Draw a whole batch."""
        return self.model.draw(inputs)

    def unbatch(self, output: Any) -> Any:
        """One tensor for each request."""
        return list(output)

    def encode_response(self, output: torch.Tensor) -> Response:
        """A PNG."""
        return Response(self.model.png(output), media_type="image/png")
