"""The web process: the API, and git over HTTP in front of it. ``gunicorn app:app``."""

from __future__ import annotations

from api.web import create_app
from builder.http import Application, application
from logs import announce


def create() -> Application:
    """The WSGI application: ``/NAME.git/…`` is git's, everything else the API's."""
    announce.install()
    return application(create_app())


app = create()
