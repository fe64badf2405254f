"""The sampler in LitServe's hooks; a module of its own, since LitServe sends it to its workers."""

from typing import Any

import litserve
import torch
from fastapi import Request, Response

from benchmarks.endpoint.rivals import Sampler


class Api(litserve.LitAPI):
    """Decodes, batches, draws and encodes."""

    storage: str
    run: str

    def setup(self, device: str) -> None:
        self.sampler = Sampler(self.storage, self.run)

    def decode_request(self, request: Request) -> tuple[torch.Tensor, int, int]:
        condition = self.sampler.condition(request["image"].file.read())
        return condition, int(request["seed"]), int(request["num_samples"])

    def batch(self, inputs: list[Any]) -> list[Any]:
        return inputs

    def predict(self, asked: Any) -> Any:
        return self.sampler.draw(asked)

    def unbatch(self, output: Any) -> Any:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> Response:
        return Response(self.sampler.png(output), media_type="image/png")
