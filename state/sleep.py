"""Sleep: an app that nobody asks anything is stopped, and started again by the next request.

As Heroku's eco dynos: when the web dynos got no request for half an hour, all dynos of the app stop.
"""

from __future__ import annotations

from sqlalchemy import exists, select, update
from sqlalchemy.orm import Session

from foundation.clock import now
from foundation.errors import InvalidParams
from state import audit, notify, sizes
from state.meanwhile import ChangedMeanwhile
from state.models import Account, App, Formation, Release

CHOICES = ("auto", "on", "off")
"""``auto``: as the size of the web dynos says: eco sleeps, the others do not."""
SLEEPY_SIZES = frozenset(("eco",))


def choose(session: Session, account: Account, app: App, choice: str, *, seen: str | None = None) -> bool:
    """Say whether the app may be put to sleep; what must not sleep wakes. False when it is so already.

    Args:
        seen: what it was when the person looked, if that is known.

    Raises:
        InvalidParams: there is no such choice.
        ChangedMeanwhile: it is not what was seen.
    """
    if choice not in CHOICES:
        raise InvalidParams(f"Sleep is {', '.join(CHOICES[:-1])} or {CHOICES[-1]}, not “{choice}”.")
    session.refresh(app, ["sleep"])
    if app.sleep == choice:
        return False
    if seen and app.sleep != seen:
        raise ChangedMeanwhile(["the choice of sleep"])
    app.sleep = choice
    session.flush()
    audit.record(session, account, "ps:sleep", app, sleep=choice)
    notify.announce(session, app.id, f"Sleep set to {choice} by user {account.email}")
    if not allowed(session, app):
        wake(session, app.id)
    return True


def allowed(session: Session, app: App) -> bool:
    """Whether the app is to be put to sleep when nobody asks it anything. One without web dynos never is."""
    web = session.scalar(select(Formation).where(Formation.app_id == app.id, Formation.type == "web", Formation.quantity > 0))
    if web is None or app.sleep == "off":
        return False
    return app.sleep == "on" or web.size in SLEEPY_SIZES


def told(session: Session, app: App, patience: int) -> str:
    """Whether it sleeps, and after how long, as a sentence.

    Args:
        patience: seconds without a request after which it does, where it may.
    """
    if app.sleep == "off":
        return "it stays awake"
    if allowed(session, app):
        return f"it sleeps when nobody asks it anything for {spoken(patience)}"
    web = session.scalar(select(Formation).where(Formation.app_id == app.id, Formation.type == "web", Formation.quantity > 0))
    if web is None:
        return "it never sleeps, for it has no web dynos"
    label, sleepy = sizes.find(web.size).label, " and ".join(sorted(sizes.find(name).label for name in SLEEPY_SIZES))
    return f"it stays awake: only {sleepy} dynos sleep by themselves, and its web dynos are {label}"


def spoken(seconds: int) -> str:
    """A time as people say it: ``30 minutes``."""
    units = ((3600, "hour"), (60, "minute"), (1, "second"))
    number, unit = next((seconds // size, unit) for size, unit in units if seconds % size == 0)
    return f"{number} {unit}{'' if number == 1 else 's'}"


def candidates(session: Session) -> list[str]:
    """The ids of the apps that are awake and may be put to sleep."""
    query = (
        select(App.id)
        .join(Formation, (Formation.app_id == App.id) & (Formation.type == "web"))
        .where(App.asleep_at.is_(None), App.destroying.is_(False), App.sleep != "off", Formation.quantity > 0)
        .where((App.sleep == "on") | Formation.size.in_(SLEEPY_SIZES))
        .where(~exists().where(Release.app_id == App.id, Release.status == "pending"))
    )
    return list(session.scalars(query))


def _changing(session: Session, app_id: str) -> bool:
    """Whether a release is on its way up: who makes one wants to see it serve, however long nobody has asked the old one."""
    pending = select(Release.id).where(Release.app_id == app_id, Release.status == "pending").limit(1)
    return session.scalar(pending) is not None


def fall_asleep(session: Session, app_id: str) -> bool:
    """Put the app to sleep; False when it must not be (any more)."""
    app = session.get(App, app_id)
    if app is None or app.destroying or app.asleep_at is not None or not allowed(session, app) or _changing(session, app_id):
        return False
    app.asleep_at = now()
    notify.runtime(session, app_id)
    return True


def wake(session: Session, app_id: str) -> bool:
    """Wake the app; False when it was awake. Called for the first request of a sleeping app, and by whatever changes it."""
    woken = session.execute(
        update(App).where(App.id == app_id, App.asleep_at.is_not(None)).values(asleep_at=None, updated_at=now())
    )
    if not woken.rowcount:  # type: ignore[attr-defined]
        return False
    notify.runtime(session, app_id)
    notify.router(session, app_id)
    return True
