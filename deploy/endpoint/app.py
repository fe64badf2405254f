"""The ASGI application: routes only. Hosted by uvicorn (server.py) or Ray Serve (serve_app.py)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from deploy.endpoint.errors import HttpError
from deploy.endpoint.gate import FAILED, Gate
from deploy.endpoint.idempotency import Answer, IdempotencyCache
from deploy.endpoint.openapi import ANSWERS, ModelFacts, describe, samples_body
from deploy.endpoint.request_body import parse_request
from deploy.endpoint.service import Service

PAGES = {  # path: (file of the page folder, media type)
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/page/style.css": ("style.css", "text/css"),
    "/page/app.js": ("app.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
}


class Application:
    """The routes of one service, with the gate around them."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.idempotency = IdempotencyCache(service.settings)
        self.routes = FastAPI(
            title="AALNet sampling endpoint",
            version="1",
            description="Several different pictures for one condition and label.",
            docs_url=None,  # FastAPI's own pages load scripts from elsewhere
            redoc_url=None,
            lifespan=self._lifespan,
        )
        self._add_routes()
        self.routes.add_exception_handler(HttpError, self._refused)
        self.routes.add_exception_handler(Exception, _failed)
        self.gate = Gate(
            self.routes, service.settings, service.keys, service.metrics, service.batcher
        )

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.gate(scope, receive, send)

    @asynccontextmanager
    async def _lifespan(self, _: FastAPI) -> AsyncIterator[None]:
        self.service.start()
        yield
        self.service.close()

    def _add_routes(self) -> None:
        get = self.routes.get
        get("/healthz", summary="Is the process alive?")(self.healthz)
        get("/readyz", summary="May requests be sent here?", responses=ANSWERS["ready"])(
            self.readyz
        )
        get("/metrics", include_in_schema=False)(self.metrics)
        get("/v1/model", summary="What is served", responses=ANSWERS["model"])(self.model)
        self.routes.post(
            "/v1/samples",
            summary="Draw samples",
            response_class=Response,
            responses=ANSWERS["samples"],
            openapi_extra=samples_body(self.service.settings.max_samples),
        )(self.samples)
        for path, (name, media_type) in PAGES.items():
            get(path, include_in_schema=False)(_page(name, media_type))
        describe(self.routes)

    async def healthz(self) -> dict[str, str]:
        """The process answers."""
        return {"status": "alive"}

    async def readyz(self, response: Response) -> dict[str, str]:
        """200 while new requests are welcome, else 503."""
        if not self.service.ready:
            response.status_code = 503
            return {"status": "not ready"}
        return {"status": "ready"}

    async def metrics(self) -> Response:
        """Prometheus' text format."""
        return Response(
            generate_latest(self.service.metrics.registry), 200, None, CONTENT_TYPE_LATEST
        )

    async def model(self) -> ModelFacts:
        """Labels, sizes, figures, settings, digest and execution."""
        model = self.service.model
        return ModelFacts(
            model=model.name,
            run=model.run,
            images_seen=model.images,
            checkpoint=model.digest,
            execution=model.executor.name,
            labels=list(model.spec.labels),
            size_px=model.size_px,
            condition_channels=model.spec.condition_channels,
            target_channels=model.spec.target_channels,
            max_samples=self.service.settings.max_samples,
            figures=dict(model.figures),
            settings=model.settings.to_dict(),
        )

    async def samples(self, request: Request) -> Response:
        """Draw `num_samples` different pictures for one condition image and label.

        The same image, label, number and seed give the same pictures, whatever else is drawn at
        the time. An image of another size is brought into form, and `x-resized` says so.
        """
        service, body = self.service, await request.body()
        kind = request.headers.get("content-type", "")
        sample_request = parse_request(kind, body, service.settings.max_samples)

        async def answer() -> Answer:
            return await service.sample(sample_request, request.state.arrival)

        id_ = request.headers.get("idempotency-key")
        if id_ is None:
            reply = await answer()
        else:
            reply = await self.idempotency.once(
                request.state.caller, id_, kind.encode() + body, answer
            )
        return Response(reply.body, 200, reply.headers, reply.media_type)

    async def _refused(self, _: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, HttpError)
        self.service.metrics.rejected.labels(refusal.reason).inc()
        return JSONResponse(refusal.body(), refusal.status, refusal.headers())


async def _failed(_: Request, __: Exception) -> Response:
    """Nothing of the error reaches the client; the gate logs it."""
    return JSONResponse(FAILED.body(), FAILED.status)


def _page(name: str, media_type: str) -> Any:
    content = files("deploy.endpoint").joinpath("page", name).read_bytes()

    async def page() -> Response:
        return Response(content, 200, {"cache-control": "no-cache"}, media_type)

    return page
