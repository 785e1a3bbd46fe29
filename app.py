"""The web process: the API and the dashboard, and git over HTTP in front of them. ``gunicorn app:app``."""

from __future__ import annotations

from api.web import create_app
from builder.http import Application, application
from dashboard.face import Face
from logs import announce


def create() -> Application:
    """The WSGI application: ``/NAME.git/…`` is git's, ``/dashboard/…`` the dashboard's, everything else the API's."""
    announce.install()
    return application(Face(create_app()))


app = create()
