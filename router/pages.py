"""What a person (HTML) or a program (JSON) gets to read instead of an app's answer.

HAProxy puts a page together from the parts of a map, with the request's id and the app's name between them, because its
log-format strings can look up and insert, but not branch: ``CODE`` is the part before the app's name, ``CODE>`` the part
between it and the request id, ``CODE>>`` the rest; ``CODEjson``, ``CODE>json``, ``CODE>>json`` are the same in JSON.
"""

from __future__ import annotations

import http.client
import json
from html import escape

from router.codes import BAD_EXPECT, BAD_METHOD, CODES, HEADER_TIMEOUT, NO_SUCH_APP, Code

_ID, _APP = "\x01", "\x02"

_STYLE = "".join(
    """
    :root{color-scheme:light dark;--ink:#1d2433;--dim:#5b6475;--paper:#f7f8fa;--card:#fff;--line:#e3e6ec;--accent:#2f6f8f}
    @media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#98a2b3;--paper:#12161d;--card:#1a2029;--line:#2a323e;
    --accent:#7cc0df}}
    *{box-sizing:border-box}
    body{margin:0;min-height:100vh;display:grid;place-items:center;background:var(--paper);color:var(--ink);padding:1.5rem;
    font:1rem/1.6 system-ui,sans-serif}
    main{max-width:34rem;width:100%;background:var(--card);border:1px solid var(--line);border-radius:14px;padding:2.25rem}
    h1{font-size:1.5rem;line-height:1.25;margin:0 0 .5rem}
    p{margin:.5rem 0}
    details{margin-top:1.5rem;border-top:1px solid var(--line);padding-top:1rem;color:var(--dim)}
    summary{cursor:pointer;color:var(--accent)}
    code{font:.875em ui-monospace,monospace;background:var(--paper);border:1px solid var(--line);border-radius:6px;
    padding:.1em .4em;overflow-wrap:anywhere}
    """.replace("\n    ", "\n").splitlines()
)


def html(code: Code) -> str:
    # A map file's lines lose trailing blanks, hence the character reference before the mark.
    """The page for a code, on one line, with one mark where the app's name goes and, after it, one for the request id."""
    label = f"{code.code} · {code.desc}" if code.code in CODES else code.desc
    opened = " open" if code.code in ("H14", "H81") else ""
    command = f"<p><code>{escape(code.command).replace(' APP', '&#32;' + _APP)}</code></p>" if code.command else _APP
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="robots" content="noindex"><title>{escape(code.title)}</title><style>{_STYLE}</style></head><body><main>'
        f"<h1>{escape(code.title)}</h1><p>{escape(code.visitor)}</p><details{opened}><summary>If this app is yours</summary>"
        f"<p><strong>{escape(label)}</strong></p>{_developer(code)}{command}"
        f"<p>Request <code>{_ID}</code></p></details></main></body></html>"
    )


def body(code: Code) -> str:
    """The JSON body for a code: ``{"id", "message", "code", "app", "request_id"}``, with the same two marks."""
    message = f"{code.title}. {code.visitor} {code.developer}".strip()
    text = json.dumps(
        {"id": code.id, "message": message, "code": code.code, "app": "*A*", "request_id": "*I*"}, ensure_ascii=False
    )
    return text.replace("*A*", _APP).replace("*I*", _ID)


def _developer(code: Code) -> str:
    parts = escape(code.developer).split("`")
    text = "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
    return f"<p>{text}</p>" if text else ""


def page_map() -> str:
    """The map file that HAProxy builds pages from (see the module's docstring)."""
    lines = []
    for code in [*CODES.values(), NO_SUCH_APP, BAD_EXPECT, BAD_METHOD]:
        for suffix, text in (("", html(code)), ("json", body(code))):
            before, rest = text.split(_APP)
            between, after = rest.split(_ID)
            lines += [f"{code.code}{suffix} {before}", f"{code.code}>{suffix} {between}", f"{code.code}>>{suffix} {after}"]
    return "\n".join(lines) + "\n"


def raw(code: Code) -> str:
    """A whole HTTP answer for what HAProxy refuses before there is a request to speak of (its ``errorfile``)."""
    text = html(code).replace(_ID, "-").replace(_APP, "")
    reason = http.client.responses[code.status]
    return (
        f"HTTP/1.1 {code.status} {reason}\r\nContent-Type: text/html; charset=utf-8\r\nCache-Control: no-store\r\n"
        f"Content-Length: {len(text.encode())}\r\nConnection: close\r\n\r\n{text}"
    )


RAW = {408: HEADER_TIMEOUT}
"""What replaces HAProxy's own pages for errors before the rules run."""
