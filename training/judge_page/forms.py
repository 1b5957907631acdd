"""Read the form of a request while its bytes are counted; a file goes straight into a folder, under a random name."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, parse_options_header
from starlette.requests import ClientDisconnect, Request

_MOST_FIELDS, _LONGEST_FIELD = 16, 1000
_LONGEST_NAME = 80  # characters of a file name that the page shows
FORM_BYTES = 64 * 1024  # a form without a file; also what the parts of a form with one may need besides the file
MIB = 1024 * 1024


class Refusal(Exception):
    """A request that is refused: the HTTP status and one sentence for the person."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Upload(NamedTuple):
    """A file of a form: the name that the browser states, for display only, and where its bytes are."""

    name: str
    path: Path
    size: int


class Form(NamedTuple):
    fields: dict[str, str]
    upload: Upload | None


def shown_name(stated: str) -> str:
    """A file name for display: without folders and control characters, and short. It is never used as a path."""
    base = stated.replace("\\", "/").rpartition("/")[2]
    printable = "".join(c for c in base if c.isprintable()).strip()
    if len(printable) > _LONGEST_NAME:
        printable = f"{printable[: _LONGEST_NAME - 20]}...{printable[-17:]}"
    return printable or "clip"


async def _counted(request: Request, limit: int) -> AsyncIterator[bytes]:
    """The chunks of a request's body.

    Raises:
        Refusal: the body is larger than `limit` bytes.
    """
    received = 0
    async for chunk in request.stream():
        received += len(chunk)
        if received > limit:
            raise Refusal(413, too_large_text(limit))
        yield chunk


def too_large_text(limit: int) -> str:
    return f"The file is larger than the limit of {max(limit // MIB, 1)} MiB: cut the video to one action, or start the page with a larger --upload_limit."


async def discard(request: Request, limit: int) -> None:
    """Read and forget up to `limit` bytes of what is still coming: a browser shows the answer only after it has sent the body."""
    received = 0
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:
                return
    except (ClientDisconnect, RuntimeError):  # the person has left; or the body was read already
        return


async def read_form(request: Request, limit: int, folder: Path | None = None) -> Form:
    """The fields and, if there is a `folder` for it, the file of a POST request.

    Raises:
        Refusal: too large (413), no form (415), damaged or with several files (400), or the disk is full (507).
        ClientDisconnect: the browser closed the connection.
    """
    content_type, options = parse_options_header(request.headers.get("content-type", ""))
    kind = content_type.decode("latin-1")
    if kind not in ("multipart/form-data", "application/x-www-form-urlencoded"):
        raise Refusal(415, "This address takes a form: use the page.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise Refusal(413, too_large_text(limit))
    fields: dict[str, str] = {}
    files: list[File] = []

    def add_field(field: Field) -> None:
        if len(fields) < _MOST_FIELDS and len(field.value or b"") <= _LONGEST_FIELD:
            name = (field.field_name or b"").decode(errors="replace")
            fields[name] = (field.value or b"").decode(errors="replace").strip()

    config = {
        "UPLOAD_DIR": None if folder is None else str(folder),
        "UPLOAD_DELETE_TMP": folder is None,
        "MAX_MEMORY_FILE_SIZE": FORM_BYTES if folder is None else 0,
        "MAX_FIELDS": _MOST_FIELDS,
        "MAX_FIELD_SIZE": FORM_BYTES,
    }
    try:
        parser = FormParser(kind, add_field, files.append, boundary=options.get(b"boundary"), config=config)
        async for chunk in _counted(request, limit):
            parser.write(chunk)
        parser.finalize()
    except FormParserError:
        raise Refusal(400, "The upload arrived damaged: send it again.") from None
    except OSError as error:
        raise Refusal(507, f"The file cannot be stored ({error.strerror}): free space in TMPDIR.") from None
    finally:
        for file in files:
            file.close()
    if folder is None or not files:
        return Form(fields, None)
    if len(files) > 1:
        raise Refusal(400, f"{len(files)} files arrived: send one video at a time.")
    first = files[0]
    name = shown_name((first.file_name or b"").decode(errors="replace"))
    if not first.size or first.actual_file_name is None:
        return Form(fields, Upload(name, folder, 0))
    return Form(fields, Upload(name, Path(os.fsdecode(first.actual_file_name)), first.size))
