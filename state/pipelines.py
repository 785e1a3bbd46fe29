"""Pipelines: apps of one project in stages, and promotions, which release one app's slug on others without building it again.

Who sees a pipeline is its owner, and whoever may view one of its apps. Its owner changes it; whoever may deploy one of its
apps adds apps, and who promotes needs the permission deploy on the source and on every target.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from foundation.errors import Conflict, Forbidden, InvalidParams, NotFound
from state import apps, audit, people, releases
from state.models import (
    Account,
    App,
    Collaborator,
    Pipeline,
    PipelineCoupling,
    Promotion,
    PromotionTarget,
    Release,
    Slug,
)

STAGES = ("test", "review", "development", "staging", "production")
NOT_FOUND = "Couldn't find that pipeline."
NO_COUPLING = "Couldn't find that pipeline coupling."
_NAME = re.compile(r"[a-z][a-z0-9-]{1,28}[a-z0-9]")  # as the public schema's pipeline.name
MOST_TARGETS = 50


def check_name(name: str) -> str:
    """``name`` when a pipeline can have it.

    Raises:
        InvalidParams: it cannot; the sentence gives the rule.
    """
    if not _NAME.fullmatch(name):
        raise InvalidParams(
            f"Field name {name[:60]!r} is not valid: it must start with a letter, end with a letter or digit, "
            "contain only lowercase letters, digits and dashes, and be 3 to 30 characters long."
        )
    return name


def create(session: Session, account: Account, name: str) -> Pipeline:
    """Make a pipeline of the account's.

    Raises:
        InvalidParams: the name cannot be used.
        Conflict: the account has one of that name.
    """
    _is_free(session, account.id, check_name(name))
    row = Pipeline(name=name, owner_id=account.id)
    session.add(row)
    session.flush()
    audit.record(session, account, "pipelines:create", name=name)
    return row


def _is_free(session: Session, owner_id: str, name: str) -> None:
    if session.scalar(select(Pipeline.id).where(Pipeline.owner_id == owner_id, Pipeline.name == name)):
        raise Conflict(f"Name {name} is already taken by a pipeline of the same owner.", id="invalid_params", status=422)


def _workable(account: Account) -> ColumnElement[bool]:
    """The apps that the account owns or works on."""
    shared = select(Collaborator.app_id).where(Collaborator.account_id == account.id)
    return or_(App.owner_id == account.id, App.id.in_(shared))


def visible(session: Session, account: Account, name: str | None = None) -> list[Pipeline]:
    """The pipelines that the account may see, by name; only those called ``name`` when it is given."""
    query = select(Pipeline).order_by(Pipeline.name, Pipeline.created_at)
    if name is not None:
        query = query.where(Pipeline.name == name)
    if not account.is_admin:
        through = select(PipelineCoupling.pipeline_id).join(App, App.id == PipelineCoupling.app_id).where(_workable(account))
        query = query.where(or_(Pipeline.owner_id == account.id, Pipeline.id.in_(through)))
    return list(session.scalars(query))


def find(session: Session, account: Account, identity: str, *, manage: bool = False) -> Pipeline:
    """The pipeline with this id or name; of several of one name the account's own.

    Args:
        manage: whether it is to be changed.

    Raises:
        NotFound: there is none, or the account must not know of it: the same sentence.
        Forbidden: the account sees it and may not change it.
    """
    row = session.get(Pipeline, identity)
    rows = visible(session, account, row.name if row else identity)
    rows = [one for one in rows if row is None or one.id == row.id]
    if not rows:
        raise NotFound(NOT_FOUND, resource="pipeline")
    found = next((one for one in rows if one.owner_id == account.id), rows[0])
    if manage and found.owner_id != account.id and not account.is_admin:
        raise Forbidden(f"Only the owner of the pipeline {found.name} can change it.")
    return found


def rename(session: Session, account: Account, row: Pipeline, name: str) -> None:
    """Give the pipeline another name.

    Raises:
        InvalidParams, Conflict: as :func:`create`.
    """
    if name != row.name:
        _is_free(session, row.owner_id, check_name(name))
        row.name = name
        session.flush()
        audit.record(session, account, "pipelines:rename", name=name)


def destroy(session: Session, account: Account, row: Pipeline) -> None:
    """Remove the pipeline; its apps stay."""
    audit.record(session, account, "pipelines:destroy", name=row.name)
    session.delete(row)
    session.flush()


def transfer(session: Session, account: Account, row: Pipeline, recipient: str) -> tuple[str, str]:
    """Give the pipeline to another account; returns the ids of the previous and the new owner.

    Raises:
        NotFound: nobody has this id or address.
        Conflict: the new owner has one of that name.
    """
    other = people.find(session, recipient)
    if other is None:
        raise NotFound(f"There is no account for {recipient}.")
    previous = row.owner_id
    if other.id != previous:
        _is_free(session, other.id, row.name)
        row.owner_id = other.id
        session.flush()
        audit.record(session, account, "pipelines:transfer", name=row.name, recipient=other.email)
    return previous, other.id


# Couplings


def couplings(session: Session, row: Pipeline) -> list[PipelineCoupling]:
    """The pipeline's apps with their stages, in the order in which they were added."""
    query = select(PipelineCoupling).where(PipelineCoupling.pipeline_id == row.id)
    return list(session.scalars(query.order_by(PipelineCoupling.created_at, PipelineCoupling.id)))


def visible_couplings(session: Session, account: Account, of: Sequence[Pipeline] | None = None) -> list[PipelineCoupling]:
    """The couplings of these pipelines, or of every one that the account may see: those with apps that it may see, too."""
    ids = [row.id for row in (visible(session, account) if of is None else of)]
    query = select(PipelineCoupling).where(PipelineCoupling.pipeline_id.in_(ids))
    if not account.is_admin:
        query = query.join(App, App.id == PipelineCoupling.app_id).where(_workable(account))
    return list(session.scalars(query.order_by(PipelineCoupling.created_at, PipelineCoupling.id)))


def coupling_of(session: Session, app: App) -> PipelineCoupling:
    """The app's coupling.

    Raises:
        NotFound: the app is in no pipeline.
    """
    row = session.scalar(select(PipelineCoupling).where(PipelineCoupling.app_id == app.id))
    if row is None:
        raise NotFound(f"{app.name} is not in a pipeline.")
    return row


def find_coupling(session: Session, account: Account, identity: str, *, change: bool = False) -> PipelineCoupling:
    """A coupling by its id.

    Args:
        change: whether it is to be changed, which takes the pipeline or the permission operate on the app.

    Raises:
        NotFound: there is none, or the account must not know of it.
        Forbidden: the account may not change it.
    """
    row = session.get(PipelineCoupling, identity)
    if row is None or row.pipeline_id not in {one.id for one in visible(session, account, row.pipeline.name)}:
        raise NotFound(NO_COUPLING)
    allowed = apps.permissions(session, account, row.app)
    if not allowed and row.pipeline.owner_id != account.id:
        raise NotFound(NO_COUPLING)
    if change and not may_change(account, row, allowed):
        raise Forbidden("That takes the pipeline's owner, or the permission “operate” on the app.")
    return row


def may_change(account: Account, row: PipelineCoupling, allowed: Collection[str]) -> bool:
    """Whether the account may move the app or take it out; ``allowed`` are its permissions on the app."""
    return account.is_admin or row.pipeline.owner_id == account.id or "operate" in allowed


def may_add(account: Account, pipeline: Pipeline, allowed: Iterable[Collection[str]]) -> bool:
    """Whether the account may add apps; ``allowed`` are its permissions on each of the pipeline's apps."""
    return account.is_admin or pipeline.owner_id == account.id or any("deploy" in one for one in allowed)


def couple(session: Session, account: Account, pipeline: Pipeline, app: App, stage: str) -> PipelineCoupling:
    """Add an app to the pipeline.

    Raises:
        InvalidParams: there is no such stage.
        Forbidden: the account sees the pipeline and may not add to it.
        Conflict: the app is in a pipeline already.
    """
    _check_stage(stage)
    present_apps = [row.app for row in couplings(session, pipeline)]
    if not may_add(account, pipeline, apps.permissions_on(session, account, present_apps).values()):
        raise Forbidden(f"Adding to the pipeline {pipeline.name} takes its owner, or the permission “deploy” on one of its apps.")
    present = session.scalar(select(PipelineCoupling).where(PipelineCoupling.app_id == app.id))
    if present is not None:
        raise Conflict(f"{app.name} is in the pipeline {present.pipeline.name} already.", id="invalid_params", status=422)
    row = PipelineCoupling(pipeline_id=pipeline.id, app_id=app.id, stage=stage)
    session.add(row)
    session.flush()
    session.refresh(row)
    audit.record(session, account, "pipelines:add", app, pipeline=pipeline.name, stage=stage)
    return row


def _check_stage(stage: str) -> None:
    if stage not in STAGES:
        raise InvalidParams(f"Field stage: there is no stage “{stage[:40]}”; there are {', '.join(STAGES)}.")


def move(session: Session, account: Account, row: PipelineCoupling, stage: str) -> None:
    """Put the app into another stage.

    Raises:
        InvalidParams: there is no such stage.
    """
    _check_stage(stage)
    if row.stage == stage:
        return
    row.stage = stage
    session.flush()
    audit.record(session, account, "pipelines:update", row.app, stage=stage)


def uncouple(session: Session, account: Account, row: PipelineCoupling) -> None:
    """Take the app out of its pipeline."""
    audit.record(session, account, "pipelines:remove", row.app, pipeline=row.pipeline.name)
    session.delete(row)
    session.flush()


# Promotions


def promote(session: Session, account: Account, pipeline: Pipeline, source_id: str, target_ids: Sequence[str]) -> Promotion:
    """Release the source's present slug on the targets, each with its own config vars; all or none are begun.

    Args:
        source_id, target_ids: ids or names of apps in the pipeline.

    Raises:
        InvalidParams: an app is not in the pipeline, is named twice, or the source has nothing to promote.
        NotFound, Forbidden: the account may not deploy one of them.
    """
    source = _member(session, account, pipeline, source_id, "source")
    targets = [_member(session, account, pipeline, one, "targets") for one in target_ids]
    if not 1 <= len(targets) <= MOST_TARGETS:
        raise InvalidParams(f"Field targets must name 1 to {MOST_TARGETS} apps.")
    if len({source.id, *(target.id for target in targets)}) != len(targets) + 1:
        raise InvalidParams("Field targets must name each app once, and not the source.")
    release = releases.current(session, source.id)
    if release is None or release.slug is None or release.slug.digest is None:
        raise InvalidParams(f"{source.name} has no code to promote; push some to it first.")
    row = Promotion(pipeline_id=pipeline.id, source_app_id=source.id, source_release_id=release.id)
    session.add(row)
    session.flush()
    for target in targets:
        made = _release(session, account, release, release.slug, source, target)
        session.add(PromotionTarget(promotion_id=row.id, app_id=target.id, release_id=made.id))
    session.flush()
    audit.record(session, account, "pipelines:promote", source, version=release.version, targets=[app.name for app in targets])
    return row


def _member(session: Session, account: Account, pipeline: Pipeline, identity: str, field: str) -> App:
    app = apps.find(session, account, identity, "deploy")
    query = select(PipelineCoupling.id).where(PipelineCoupling.pipeline_id == pipeline.id, PipelineCoupling.app_id == app.id)
    if not session.scalar(query):
        raise InvalidParams(f"Field {field}: {app.name} is not in the pipeline {pipeline.name}.")
    return app


def _release(session: Session, account: Account, release: Release, slug: Slug, source: App, target: App) -> Release:
    words = f"Promote {source.name} v{release.version} {(slug.commit or '')[:8]}".strip()
    own = _own_slug(session, slug, target)
    return releases.create(
        session, target, account, kind="deploy", description=words, slug=own, process_types=release.process_types
    )


def _own_slug(session: Session, slug: Slug, target: App) -> Slug:
    """The target's row for the same image: nothing is built or copied, and the source may be destroyed."""
    query = select(Slug).where(Slug.app_id == target.id, Slug.digest == slug.digest, Slug.commit.is_(slug.commit))
    if slug.commit is not None:
        query = select(Slug).where(Slug.app_id == target.id, Slug.digest == slug.digest, Slug.commit == slug.commit)
    known = session.scalar(query.limit(1))
    if known is not None:
        return known
    kept = {column.key: getattr(slug, column.key) for column in Slug.__table__.columns}
    own = Slug(**{key: value for key, value in kept.items() if key not in ("id", "app_id", "created_at", "updated_at")})
    own.app_id = target.id
    session.add(own)
    session.flush()
    return own


def find_promotion(session: Session, account: Account, identity: str) -> Promotion:
    """A promotion of a pipeline that the account may see, from an app that it may see: it tells of that app's release.

    Raises:
        NotFound: there is none.
    """
    row = session.get(Promotion, identity)
    if row is None or row.pipeline_id not in {one.id for one in visible(session, account, row.pipeline.name)}:
        raise NotFound("Couldn't find that pipeline promotion.")
    if not apps.permissions(session, account, session.get_one(App, row.source_app_id)):
        raise NotFound("Couldn't find that pipeline promotion.")
    return row


def targets_of(session: Session, row: Promotion, seen_by: Account | None = None) -> list[PromotionTarget]:
    """The promotion's targets with their releases; only those whose apps the account may see when it is given."""
    query = select(PromotionTarget).where(PromotionTarget.promotion_id == row.id)
    if seen_by is not None and not seen_by.is_admin:
        query = query.join(App, App.id == PromotionTarget.app_id).where(_workable(seen_by))
    return list(session.scalars(query.order_by(PromotionTarget.created_at, PromotionTarget.id)))


def standing(target: PromotionTarget) -> tuple[str, str | None]:
    """A target's status (pending, succeeded, failed) and, when it failed, why."""
    if target.release is None:
        return "failed", "The release is gone."
    return target.release.status, target.release.failure if target.release.status == "failed" else None
