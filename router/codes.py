"""Heroku's router error codes: what each is called in the log, its HTTP status, and what to tell people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Code:
    """An error code.

    Attributes:
        code: H10 … H99.
        desc: the text in the log line.
        status: the HTTP status that the client gets and the log line shows.
        at: the log line's level: error, warning or info.
        title: the page's headline, for whoever visits the app.
        visitor: what happened, for them.
        developer: what happened and what to do, for whoever runs the app.
        command: the command that helps further; APP stands for the app's name.
        id: the machine-readable id in the JSON body.
    """

    code: str
    desc: str
    status: int
    at: str = "error"
    title: str = "This app could not answer"
    visitor: str = "Something went wrong on the app's side. Please try again in a moment."
    developer: str = ""
    command: str = "davit logs --tail -a APP"
    id: str = "app_error"


_SOON = "Please try again in a moment."

CODES = {
    code.code: code
    for code in (
        Code(
            "H10",
            "App crashed",
            503,
            title="This app has crashed",
            visitor="It stopped working and has not come back yet. Please try again in a few minutes.",
            developer="Every web dyno has crashed. The log shows why; after a fix push again, or run `davit ps:restart`.",
            id="app_crashed",
        ),
        Code(
            "H11",
            "Backlog too deep",
            503,
            title="Too many visitors at once",
            visitor=f"More requests are waiting for this app than it can take. {_SOON}",
            developer="Requests wait while the web dynos start; the queue is full. More dynos hold more: `davit ps:scale web=2`.",
            id="backlog_too_deep",
        ),
        Code(
            "H12",
            "Request timeout",
            503,
            title="This app took too long to answer",
            visitor=f"It did not begin to answer in time. {_SOON}",
            developer="A web dyno sent no first byte within 30 seconds (for an upload, nothing moved for 55). "
            "Move long work to a worker process.",
            id="request_timeout",
        ),
        Code(
            "H13",
            "Connection closed without response",
            503,
            developer="A web dyno took the request and closed the connection without a proper answer. Its log may show why.",
            id="connection_closed",
        ),
        Code(
            "H14",
            "No web processes running",
            503,
            title="This app is not running",
            visitor="It has been switched off, or was never switched on.",
            developer="No web dyno is wanted. `davit ps:scale web=1` scales one up; "
            "a Procfile without a `web:` line needs one first.",
            command="davit ps:scale web=1 -a APP",
            id="no_web_processes",
        ),
        Code(
            "H15",
            "Idle connection",
            503,
            developer="For 55 seconds nothing went over the connection. Send something now and then, or use a worker process.",
            id="idle_connection",
        ),
        Code(
            "H17",
            "Poorly formatted HTTP response",
            503,
            developer="A web dyno's answer was no valid HTTP, or its headers were too large. Look at those that the app sets.",
            id="bad_response",
        ),
        Code(
            "H18",
            "Server Request Interrupted",
            503,
            developer="A web dyno closed the connection in the middle of a request or an answer. Its log may show why.",
            id="server_interrupted",
        ),
        Code(
            "H19",
            "Backend connection timeout",
            503,
            developer="No web dyno accepted a connection within 5 seconds. They may be overloaded: see the log and `davit ps`.",
            id="connection_timeout",
        ),
        Code(
            "H20",
            "App boot timeout",
            503,
            title="This app is still starting",
            visitor="It is taking longer than usual to start. Please try again in a minute.",
            developer="No web dyno was ready within 75 seconds. It has to listen on 0.0.0.0 at the port in $PORT.",
            id="boot_timeout",
        ),
        Code(
            "H21",
            "Backend connection refused",
            503,
            developer="The web dynos refused the connection. The process may have stopped listening on $PORT.",
            id="connection_refused",
        ),
        Code(
            "H26",
            "Request Error",
            400,
            title="That request could not be read",
            visitor="The browser or program sent a malformed request.",
            developer="The request never reached the app; whoever sent it has to correct it.",
            command="",
            id="bad_request",
        ),
        Code(
            "H27",
            "Client Request Interrupted",
            499,
            at="warning",
            developer="The client went away before the answer was whole. Nothing to do, unless the app was slow to give it.",
            id="client_interrupted",
        ),
        Code(
            "H28",
            "Client Connection Idle",
            499,
            at="warning",
            developer="The client did not finish sending its request in time. Nothing to do, unless many clients do so.",
            id="client_idle",
        ),
        Code(
            "H80",
            "Maintenance mode",
            503,
            at="info",
            title="Back soon",
            visitor="This app is offline for maintenance. Please come back in a while.",
            developer="Maintenance mode is on; `davit maintenance:off` ends it.",
            command="davit maintenance:off -a APP",
            id="maintenance",
        ),
        Code(
            "H81",
            "Blank app",
            503,
            at="info",
            title="Nothing here yet",
            visitor="This app was created, and waits for its first version.",
            developer="Deploy from your project's directory: `davit git:remote` makes the remote, then `git push davit main`.",
            command="davit git:remote -a APP",
            id="blank_app",
        ),
    )
}

NO_SUCH_APP = Code(
    "404",
    "No such app",
    404,
    title="There is no app here",
    visitor="No app answers at this address. Check the spelling.",
    developer="If this domain should lead to an app of yours, add it: `davit domains:add HOST -a NAME`.",
    command="",
    id="no_such_app",
)
BAD_EXPECT = Code(
    "417",
    "Request Error",
    417,
    title="That request asks for something impossible",
    visitor="Its Expect header holds something other than 100-continue.",
    command="",
    id="bad_expect",
)
BAD_METHOD = Code(
    "405",
    "Request Error",
    405,
    title="That method does not work here",
    visitor="Apps cannot be reached with CONNECT.",
    command="",
    id="method_not_allowed",
)
HEADER_TIMEOUT = Code(
    "408",
    "Client Connection Idle",
    408,
    title="That request never arrived",
    visitor="The request took too long to be sent.",
    command="",
    id="request_timeout",
)
"""Answers that belong to no app."""
