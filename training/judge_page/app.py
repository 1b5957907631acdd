"""The routes of the page, and the guards before them.

Every address begins with the random token. Requests need a local host name (against DNS rebinding), a POST the page's own origin.
Uploads are counted while they arrive, and no name that a person gives is used as a path.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from data_preparation.file_types import file_type_of, read_head
from training.judge_page.clips import Clip, Clips
from training.judge_page.forms import FORM_BYTES, MIB, Form, Refusal, discard, read_form
from training.judge_page.records import RunFacts, Verdict, VideoFacts
from training.judge_page.worker import Job, QueueFull, Worker

log = logging.getLogger(__name__)

_HERE = Path(__file__).parent
_SWEEP_S = 20.0  # seconds between removals of old clips
_LONGEST_ANSWER = 40
LOCAL_HOSTS = ["127.0.0.1", "localhost"]

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; media-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",  # the address holds the token; with no-referrer, browsers hide the origin of a form
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

templates = Environment(
    loader=FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
    lstrip_blocks=True,
)  # fmt: skip


def place(value: float, scale: tuple[float, float]) -> str:
    """Where a score lies on the bar of verdict.html, which is drawn from x = 10 to 410."""
    low, high = scale
    return f"{10 + 400 * min(max((value - low) / (high - low), 0.0), 1.0):.1f}"


templates.globals["place"] = place


class Guard:
    """Lets a request through only if its address begins with the token and, for anything but reading, if its origin is the page."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # the page has no websockets
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        refusal = self._refusal(scope)
        await (refusal or self.app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        first = scope["path"].lstrip("/").partition("/")[0]
        if not secrets.compare_digest(first.encode(errors="replace"), self.token):
            return PlainTextResponse("Open the address that the command printed: it ends with a token.\n", 404)
        if scope["method"] in ("GET", "HEAD"):
            return None
        headers = {name.lower(): value for name, value in scope["headers"]}
        if headers.get(b"origin") != b"http://" + headers.get(b"host", b""):
            return PlainTextResponse(
                "The form was not sent by this page: open the address that the command printed.\n", 403
            )
        return None


@dataclass(frozen=True)
class JudgePage:
    """The page of a run: `upload_limit` is in bytes, `clips` and `worker` are its state."""

    token: str
    run: RunFacts
    clips: Clips
    worker: Worker
    upload_limit: int

    # ---------------------------------------------------------------------------------------------------------- pages

    async def home(self, request: Request) -> Response:
        return self._page("home.html", "")

    async def clip(self, request: Request) -> Response:
        clip = self._clip(request)
        context: dict[str, Any] = dict(clip=clip, status=self._status(clip))
        if clip.facts is not None:
            context["seconds"] = clip.facts.frames / clip.facts.rate
        return self._page("clip.html", clip.name, status_code=422 if clip.state == "failed" else 200, **context)

    async def status(self, request: Request) -> Response:
        """What the page asks for while it waits: the state, and a sentence about it."""
        clip = self._clip(request)
        return JSONResponse({"state": clip.state, "text": self._status(clip)})

    async def upload(self, request: Request) -> Response:
        """Take a file, and have it read."""
        if self.worker.is_full:
            raise Refusal(503, self._full_text())
        clip = self.clips.new()
        if clip is None:
            raise Refusal(503, f"The page holds {self.clips.bound} clips and takes no more: try again in some minutes.")
        try:
            form = await read_form(request, self.upload_limit + FORM_BYTES, clip.folder)
            self._take(clip, form)
        except BaseException:  # refused; or the browser closed the connection, or the page ends
            self.clips.remove(clip)
            raise
        return RedirectResponse(f"/{self.token}/clips/{clip.id}", 303)

    def _take(self, clip: Clip, form: Form) -> None:
        """Check an uploaded file by its first bytes and put it into the queue. Raises Refusal."""
        if form.upload is None:
            raise Refusal(400, "No file arrived: choose a video file.")
        clip.name, size = form.upload.name, form.upload.size
        if size == 0:
            raise Refusal(415, f"{clip.name} is empty (0 bytes): choose another file.")
        if size > self.upload_limit:
            raise Refusal(413, f"{clip.name} is larger than the limit of {self.upload_limit // MIB} MiB.")
        clip.path = form.upload.path
        # unknown types are refused, too: ffmpeg would open the files that a playlist names
        content = file_type_of(read_head(clip.path))
        if content is None or content.kind != "video":
            found = f"is {content.name}, not a video" if content else "has none of the known types of videos"
            raise Refusal(415, f"{clip.name} {found}: choose a video file, such as MP4.")

        def done(facts: VideoFacts) -> None:
            clip.facts = facts
            clip.state = "ready"

        self._submit(clip, "read", dict(path=clip.path, folder=clip.folder), done)

    async def score(self, request: Request) -> Response:
        """Have a part of a clip scored, with the answers to the run's questions."""
        clip = self._clip(request)
        form = await read_form(request, FORM_BYTES)
        if clip.state == "ready" and clip.facts is not None:  # else the button was pressed twice
            start, end = _frame_range(form.fields, clip.facts.frames)
            answers = self._answers(form.fields)
            arguments = dict(path=clip.path, name=clip.name, start=start, end=end, answers=answers, folder=clip.folder)

            def done(verdict: Verdict) -> None:
                clip.verdict = verdict
                clip.delete_upload()
                clip.state = "scored"

            clip.state = "scoring"
            try:
                self._submit(clip, "score", arguments, done)
            except Refusal:
                clip.state = "ready"
                raise
        return RedirectResponse(f"/{self.token}/clips/{clip.id}", 303)

    async def delete(self, request: Request) -> Response:
        self.clips.remove(self._clip(request))
        return RedirectResponse(f"/{self.token}/", 303)

    # ---------------------------------------------------------------------------------------------------------- files

    async def video(self, request: Request) -> Response:
        """The uploaded file, for the preview."""
        path = self._clip(request).path
        if path is None:
            raise HTTPException(404)
        return FileResponse(path, media_type="video/mp4", content_disposition_type="inline")

    async def thumbnail(self, request: Request) -> Response:
        clip, number = self._clip(request), request.path_params["number"]
        if clip.facts is None or number not in clip.facts.thumbnails:
            raise HTTPException(404)
        return FileResponse(clip.folder / f"{number}.jpg", media_type="image/jpeg")

    async def explanation(self, request: Request) -> Response:
        """A file that explains the prediction, by its place in the verdict."""
        clip, number = self._clip(request), request.path_params["number"]
        files = (*clip.verdict.videos, *clip.verdict.pictures) if clip.verdict else ()
        if number >= len(files):
            raise HTTPException(404)
        return FileResponse(clip.folder / files[number])

    # -------------------------------------------------------------------------------------------------------- helpers

    def _clip(self, request: Request) -> Clip:
        clip = self.clips.get(request.path_params["clip"])
        if clip is None:
            raise Refusal(404, "This clip was deleted: drop it again.")
        return clip

    def _submit(self, clip: Clip, name: str, arguments: dict[str, Any], done: Callable[[Any], None]) -> None:
        def ending(tell: Callable[[Any], None]) -> Callable[[Any], None]:
            def ended(result: Any) -> None:
                tell(result)
                if self.clips.get(clip.id) is None:  # deleted meanwhile, and the worker may have written files since
                    self.clips.remove(clip)

            return ended

        try:
            self.worker.submit(Job(clip.id, name, arguments, ending(done), ending(clip.fail)))
        except QueueFull:
            raise Refusal(503, self._full_text()) from None

    def _full_text(self) -> str:
        return f"{self.worker.bound} clips wait already: try again in a minute."

    def _status(self, clip: Clip) -> str:
        """A sentence about a clip that waits or is worked on."""
        if not clip.busy:
            return ""
        ahead = self.worker.ahead(clip.id)
        if ahead is not None:
            return f"Waiting: {ahead} before this one."
        return "Reading the video." if clip.state == "reading" else "Scoring the clip."

    def _answers(self, fields: dict[str, str]) -> dict[str, str]:
        """The answers to the run's questions. Raises Refusal: one is missing, or not allowed."""
        answers = {}
        for question in self.run.questions:
            answer = fields.get(question.name, "")
            if not answer:
                if question.required:
                    raise Refusal(400, f"The {question.label.lower()} is missing: this run needs it.")
                continue
            if len(answer) > _LONGEST_ANSWER or (question.choices and answer not in question.choices):
                raise Refusal(400, f"The {question.label.lower()} is not one of the allowed values: {question.hint}.")
            if question.is_number and not _is_positive(answer):
                raise Refusal(400, f"The {question.label.lower()} must be a number greater than 0: {question.hint}.")
            answers[question.name] = answer
        return answers

    def _page(self, template: str, title: str, status_code: int = 200, **context: Any) -> HTMLResponse:
        text = templates.get_template(template).render(
            base=f"/{self.token}", run=self.run, title=title, limit_mib=self.upload_limit // MIB,
            limit_bytes=self.upload_limit, keep_minutes=round(self.clips.keep_s / 60), **context,
        )  # fmt: skip
        return HTMLResponse(text, status_code)

    async def _refuse(self, request: Request, error: Exception) -> Response:
        """The answer to a refused request: a page, or JSON for the page's script."""
        refusal = error if isinstance(error, Refusal) else Refusal(404, "There is nothing at this address.")
        if request.method == "POST":
            await discard(request, self.upload_limit)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"error": refusal.sentence}, refusal.status)
        clip = request.path_params.get("clip")
        back = f"clips/{clip}" if clip and self.clips.get(clip) else ""
        return self._page("refused.html", "Refused", refusal.status, sentence=refusal.sentence, back=back)

    async def _fail(self, request: Request, error: Exception) -> Response:
        """A defect of the page: its log is the terminal."""
        log.error("%s %s failed", request.method, request.url.path.partition(self.token)[2], exc_info=error)
        return self._page(
            "refused.html", "Failed", 500, sentence="The page failed: read its messages in the terminal.", back=""
        )

    async def _forget(self, request: Request, error: Exception) -> Response:
        """The browser closed the connection: nobody reads this."""
        return Response(status_code=400)

    # ------------------------------------------------------------------------------------------------------------ app

    def app(self) -> Starlette:
        """The application, with its guards."""

        @contextlib.asynccontextmanager
        async def sweeping(app: Starlette) -> AsyncIterator[None]:
            async def sweep() -> None:
                while True:
                    await asyncio.sleep(_SWEEP_S)
                    self.clips.remove_old()

            task = asyncio.create_task(sweep())
            try:
                yield
            finally:
                task.cancel()

        one = "/clips/{clip}"
        routes: list[Route | Mount] = [
            Route("/", self.home),
            Route("/clips", self.upload, methods=["POST"]),
            Route(one, self.clip),
            Route(f"{one}/status", self.status),
            Route(f"{one}/score", self.score, methods=["POST"]),
            Route(f"{one}/delete", self.delete, methods=["POST"]),
            Route(f"{one}/video", self.video),
            Route(f"{one}/thumbnails/{{number:int}}", self.thumbnail),
            Route(f"{one}/explanation/{{number:int}}", self.explanation),
            Mount("/static", StaticFiles(directory=_HERE / "static")),
        ]
        return Starlette(
            routes=[Mount(f"/{self.token}", routes=routes)],
            middleware=[
                Middleware(TrustedHostMiddleware, allowed_hosts=LOCAL_HOSTS, www_redirect=False),
                Middleware(Guard, token=self.token),
            ],
            exception_handlers={
                Refusal: self._refuse,
                HTTPException: self._refuse,
                ClientDisconnect: self._forget,
                Exception: self._fail,
            },
            lifespan=sweeping,
        )


def _is_positive(text: str) -> bool:
    try:
        return 0 < float(text) < math.inf
    except ValueError:
        return False


def _frame_range(fields: dict[str, str], frames: int) -> tuple[int, int]:
    """The first and the last frame of a form. Raises Refusal: they are not a range of the clip's frames."""
    words = fields.get("start", ""), fields.get("end", "")
    if all(word.isascii() and word.isdecimal() and len(word) < 10 for word in words):
        start, end = (int(word) for word in words)
        if 1 <= start <= end <= frames:
            return start, end
    raise Refusal(400, f"The first and the last frame must be a range within 1 to {frames}.")
