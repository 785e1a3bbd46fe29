"""One way to fail: an exception that carries a sentence for the user, an id for programs and an HTTP status."""

from __future__ import annotations

import errno
import os


class DavitError(Exception):
    """A failure that a person will read.

    Args:
        message: a whole sentence: what is wrong, where, what to do about it. Never a secret.
        id: the machine-readable id of Heroku's error body (``{"id", "message", "url"}``); the class's own by default.
        status: the HTTP status that a face answers with; the class's own by default.
        resource: what kind of thing was not found, in Heroku's word, where clients look at it.

    Subclasses set ``id`` and ``status``; every id has a row in docs/errors.md.
    """

    id = "internal_error"
    status = 500

    def __init__(self, message: str, *, id: str | None = None, status: int | None = None, resource: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.resource = resource
        if id is not None:
            self.id = id
        if status is not None:
            self.status = status


class InvalidParams(DavitError):
    """The request's values are wrong; the message names the field."""

    id, status = "invalid_params", 422


class BadRequest(DavitError):
    """The request cannot be read at all (malformed JSON, an impossible header)."""

    id, status = "bad_request", 400


class Unauthorized(DavitError):
    """No valid credentials came with the request."""

    id, status = "unauthorized", 401


class Forbidden(DavitError):
    """The account is known and may not do this."""

    id, status = "forbidden", 403


class NotFound(DavitError):
    """The thing does not exist, or the account must not learn that it does."""

    id, status = "not_found", 404


class Conflict(DavitError):
    """The request is right but the present state refuses it."""

    id, status = "conflict", 409


class Unavailable(DavitError):
    """A part of Davit is not there at the moment; trying again later can help."""

    id, status = "unavailable", 503


class DiskFull(DavitError):
    """The disk that holds DAVIT_HOME (or the database) has no room.

    Args:
        consequence: what was not done because of it, for example ``your push was not taken``.
    """

    id, status = "disk_full", 507

    def __init__(self, consequence: str = "nothing was changed") -> None:
        super().__init__(f"The disk is full, so {consequence}; the owner of this Davit has to make room.")


NO_ROOM = frozenset((errno.ENOSPC, errno.EDQUOT))
"""The errors of a system call for want of disk space."""


def is_full(path: str | os.PathLike[str]) -> bool:
    """Whether hardly a megabyte is left on the disk of ``path``: explains the failure of a program that does not say."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize < 1 << 20
