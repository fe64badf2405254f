"""LitServe over the plain model: `python -m benchmarks.endpoint.lit STORAGE RUN PORT`.

Annotations are not postponed here: LitServe looks at the class that `decode_request` takes.
"""

import sys
from typing import Any

import litserve
import torch
from fastapi import Request, Response

from benchmarks.endpoint.rivals import BATCH, PlainModel


class Api(litserve.LitAPI):
    """Decodes, draws and encodes, in LitServe's hooks; it makes the batches."""

    storage: str
    run: str

    def setup(self, device: str) -> None:
        """Load the model in the worker."""
        self.model = PlainModel(self.storage, self.run)

    def decode_request(self, request: Request) -> tuple[torch.Tensor, int, int]:
        """Condition, seed, samples."""
        condition = self.model.condition(request["image"].file.read())
        return condition, int(request["seed"]), int(request["num_samples"])

    def predict(self, inputs: Any) -> Any:
        """Samples [N, k, 3, S, S] of a batch of requests."""
        return self.model.draw(inputs)

    def encode_response(self, output: torch.Tensor) -> Response:
        """A PNG."""
        return Response(self.model.png(output), media_type="image/png")


def main() -> None:
    """Serve with LitServe's own batching."""
    storage, run, port = sys.argv[1:]
    api = Api(max_batch_size=BATCH, batch_timeout=0.004, api_path="/v1/samples")
    api.storage, api.run = storage, run
    litserve.LitServer(api, accelerator="cpu", workers_per_device=1).run(
        port=int(port), generate_client_file=False, log_level="error"
    )


if __name__ == "__main__":
    main()
