"""What clients of a Davit are answered is held against what ``GET /schema`` publishes, whoever they are."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
from werkzeug.datastructures import Headers

from tests.api.published import Seen, assert_as_published, operation_at

RECORDER = """\
// Loaded before the heroku command (NODE_OPTIONS): writes down what it is answered, and changes nothing of it.
const {IncomingMessage} = require('node:http'), fs = require('node:fs')
const push = IncomingMessage.prototype.push, bodies = new WeakMap()
IncomingMessage.prototype.push = function (chunk, encoding) {
  if (this.req && /^application\\/json/.test(this.headers['content-type'] || '')) {
    const parts = bodies.get(this) || []
    bodies.set(this, parts)
    if (chunk) parts.push(Buffer.from(chunk, encoding))
    else if (chunk === null) fs.appendFileSync(process.env.DAVIT_SEEN, JSON.stringify({
      method: this.req.method, path: this.req.path, host: this.req.getHeader('host'), status: this.statusCode,
      headers: this.headers, body: Buffer.concat(parts).toString('base64'),
    }) + '\\n')
  }
  return push.call(this, chunk, encoding)
}
"""


def check(response: httpx.Response) -> None:
    """Of an HTTP client of the tests: its hook for answers. What is streamed is not waited for."""
    headers = {name: value for name, value in response.headers.items() if name.lower() != "content-encoding"}
    body = response.read() if response.headers.get("content-type", "").startswith("application/json") else None
    _check(Seen(response.request.method, response.request.url.path, response.status_code, Headers(headers), body))


def recorded(record: Path) -> list[dict[str, Any]]:
    """What the recorder has written so far; a command may be at it."""
    lines = record.read_text().splitlines(keepends=True) if record.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def check_recorded(record: Path, host: str) -> int:
    """Of the heroku command: what it was answered by ``host`` (HOST:PORT), as the recorder wrote it; returns how many answers."""
    ours = [line for line in recorded(record) if line["host"] == host]
    for line in ours:
        path, body = unquote(urlsplit(line["path"]).path), base64.b64decode(line["body"])
        _check(Seen(line["method"], path, line["status"], Headers(line["headers"]), body))
    return len(ours)


def _check(seen: Seen) -> None:
    if operation_at(seen.method, seen.path) or seen.mimetype == "application/json":  # else a page of the dashboard's, or git's
        assert_as_published(seen)
