"""TF Serving's REST protocol in front of `serving.local`, as an ASGI application.

    GET  /v1/models/NAME[/versions/N|/labels/LABEL]            status
    GET  /v1/models/NAME[/versions/N|/labels/LABEL]/metadata   signatures
    POST /v1/models/NAME[/versions/N|/labels/LABEL]:predict    see `serving.json_requests`
    POST /v1/models/NAME[/versions/N|/labels/LABEL]:explain    see `serving.explain`
    GET  /                                                     a page to try a model
    GET  /healthz                                              200; 503 once a stop has begun
    GET  /monitoring/prometheus/metrics                        see `serving.metrics`
    GET  /openapi.json                                         see `serving.openapi`

TF Serving has no `:explain`. An error is {"error": "…"}, one sentence, with TF Serving's HTTP code
for it.
"""

from __future__ import annotations

import asyncio
import json
import re
import traceback
from typing import Any, Optional
from urllib.parse import unquote

import grpc
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving import connections, explain, json_requests, metrics, openapi, page
from serving.json_requests import MAX_BYTES
from serving.memory import Share
from serving.models import Models
from serving.refused import Refused

HTTP_CODES = {
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.UNAVAILABLE: 503,
}
LONG = 2**18
"""Bytes from which a body is parsed in a thread, so that it holds up no other request."""
MANY = 2**13
"""Count of numbers from which an answer is written in a thread."""

_Spec = tuple[str, Optional[int], Optional[str]]
"""Model, and version or label."""

_PATH = re.compile(
    r"/v1/models/([^/:]+)(?:/versions/(\d{1,18})|/labels/([^/:]+))?"
    r"(?:(/metadata)|:(predict|explain|classify|regress))?",
    re.IGNORECASE,
)


class Server(connections.Server):
    """REST server of `models`, in a thread of its own.

    Args:
      models: models to serve.
      host: address to listen on.
      port: port to listen on; 0 takes a free one.
      seconds: time for a request to arrive whole.
      cors: whether pages of any origin may ask.

    Raises:
      OSError: the port cannot be opened.
    """

    def __init__(self, models: Models, host: str, port: int, seconds: float, cors: bool = False):
        self._rest = _Rest(models)
        super().__init__(_application(self._rest, cors), host, port, seconds)

    def drain(self) -> None:
        """Answers the requests in flight, and refuses later requests with 503."""
        self._rest.draining = True

    def shutdown(self) -> None:
        """Stops taking connections, answers all requests in flight, and returns."""
        self.drain()
        super().shutdown()


def _application(rest: _Rest, cors: bool) -> Starlette:
    allowed: dict[str, Any] = {
        "allow_origins": ["*"],
        "allow_methods": ["GET", "POST"],
        "allow_headers": ["*"],
    }
    application = Starlette(
        routes=[
            Route("/v1/models/{path:path}", rest.models, methods=["GET", "POST"]),
            Route("/", rest.page),
            Route("/healthz", rest.health),
            Route(metrics.PATH, rest.metrics),
            Route("/openapi.json", rest.openapi),
        ],
        middleware=[Middleware(CORSMiddleware, **allowed)] if cors else [],
        exception_handlers={HTTPException: rest.refuse},
    )
    application.router.redirect_slashes = False
    return application


class _Rest:
    """Handlers that answer requests.

    Attributes:
      draining: whether a stop has begun; connections then end with their next answer.
    """

    def __init__(self, models: Models):
        self._models, self.draining = models, False
        self._explainer = explain.Explainer()

    async def models(self, request: Request) -> Response:
        """Answers with status, metadata or predictions."""
        path = request.scope["raw_path"].decode("ascii", "replace")
        match = _PATH.fullmatch(path)
        try:
            if match is None:
                raise Refused(grpc.StatusCode.NOT_FOUND, f"no such path: {path[:200]}")
            if self.draining:
                raise Refused(
                    grpc.StatusCode.UNAVAILABLE, "the server is stopping; ask again later"
                )
            if request.method == "POST":
                return self._json(await self._post(request, match))
            return self._json(self._get(match))
        except Refused as error:
            code = error.http or HTTP_CODES.get(error.code, 500)
            return self._error(code, str(error))
        except ClientDisconnect:
            return Response()  # nobody reads it
        except Exception:  # a bug of ours ends neither the server nor in silence
            traceback.print_exc()
            return self._error(500, "internal error; the server's stderr says more")

    async def page(self, request: Request) -> Response:
        """Answers with the page to try a model."""
        headers = {**self._headers(), "content-security-policy": page.POLICY}
        return Response(page.html(self._models.names()), 200, headers, "text/html")

    async def health(self, request: Request) -> Response:
        """Says whether the server takes requests. The port opens when all models are warm."""
        if self.draining:
            return self._error(503, "the server is stopping")
        return self._json('{"status": "ok"}')

    async def metrics(self, request: Request) -> Response:
        """Answers with counts and times."""
        text = self._models.metrics.text()
        return Response(text, headers=self._headers(), media_type=metrics.CONTENT_TYPE)

    async def openapi(self, request: Request) -> Response:
        """Answers with the description of this protocol."""
        return self._json(json.dumps(openapi.document(self._models.names())))

    async def refuse(self, request: Request, error: Any) -> Response:
        """Reports in JSON what Starlette finds wrong."""
        message = (
            f"no such path: {request.scope['path'][:200]}"
            if error.status_code == 404
            else error.detail
        )
        headers = {**(error.headers or {}), **self._headers()}
        return JSONResponse({"error": message}, error.status_code, headers)

    def _get(self, match: re.Match[str]) -> str:
        spec = _spec(match)
        if match[5]:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, f":{match[5]} wants POST")
        return self._models.metadata_json(*spec) if match[4] else self._models.status_json(*spec)

    async def _post(self, request: Request, match: re.Match[str]) -> str:
        with Share(self._models.memory) as share:
            return await self._answer(request, match, await _body(request, share), share)

    async def _answer(
        self, request: Request, match: re.Match[str], body: bytes, share: Share
    ) -> str:
        if not match[5]:
            raise Refused(
                grpc.StatusCode.INVALID_ARGUMENT, "a POST wants :predict at the end of the path"
            )
        encoding = request.headers.get("content-encoding", "").strip().lower()
        if match[5].lower() == "explain":
            return await self._explain(_spec(match), body, encoding, share)
        if match[5].lower() != "predict":
            message = f":{match[5]} is not served here, :predict is"
            raise Refused(grpc.StatusCode.UNIMPLEMENTED, message)
        with self._models.counted(unquote(match[1]), "predict", "REST"):
            return await self._predict(_spec(match), body, encoding, share)

    async def _parse(
        self, spec: _Spec, body: bytes, encoding: str, share: Share
    ) -> json_requests.Prediction:
        def parse() -> json_requests.Prediction:
            content = json_requests.decompress(body, encoding)
            if encoding:
                share.add(len(content))
            return json_requests.parse(content, lambda name: self._models.signature(*spec, name))

        if encoding or len(body) > LONG:
            return await asyncio.get_running_loop().run_in_executor(None, parse)
        return parse()

    async def _explain(self, spec: _Spec, body: bytes, encoding: str, share: Share) -> str:
        asked = await self._parse(spec, body, encoding, share)
        version = self._models.find(*spec)
        return await asyncio.wrap_future(self._explainer.submit(version, asked.inputs))

    async def _predict(self, spec: _Spec, body: bytes, encoding: str, share: Share) -> str:
        asked = await self._parse(spec, body, encoding, share)
        submitted = self._models.submit(asked.signature, asked.inputs)
        outputs = await asyncio.wrap_future(submitted)
        if sum(value.size for value in outputs.values()) > MANY:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(None, json_requests.answer, outputs, asked.by_row)
        return json_requests.answer(outputs, asked.by_row)

    def _headers(self) -> dict[str, str]:
        return {"connection": "close"} if self.draining else {}

    def _json(self, text: str, code: int = 200) -> Response:
        return Response(text.encode(), code, self._headers(), "application/json")

    def _error(self, code: int, message: str) -> Response:
        return self._json(json.dumps({"error": message}), code)


def _spec(match: re.Match[str]) -> _Spec:
    version, label = match[2], match[3]
    return unquote(match[1]), int(version) if version else None, unquote(label) if label else None


async def _body(request: Request, share: Share) -> bytes:
    """Reads the body of a request, and adds it to the request's `share` as it comes.

    Raises:
      Refused: it is too long, if possible before it is read; or all requests hold too many bytes.
    """
    length, coding = request.headers.get("content-length"), request.headers.get("transfer-encoding")
    if length is None and coding is None:
        message = "a request needs a Content-Length, or Transfer-Encoding: chunked"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message, http=411)
    if length is not None and int(length) > MAX_BYTES:
        message = f"the body has {int(length):,} bytes; {MAX_BYTES:,} are accepted"
        raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message, http=413)
    parts, size = [], 0
    async for part in request.stream():
        share.add(len(part))
        parts.append(part)
        size += len(part)
        if size > MAX_BYTES:
            message = f"the body has more than {MAX_BYTES:,} bytes"
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT, message, http=413)
    return b"".join(parts)


def start(host: str, port: int, models: Models, seconds: float, cors: bool = False) -> Server:
    """Serves in a thread of its own; `shutdown()` ends it. Raises OSError."""
    return Server(models, host, port, seconds, cors)
