"""Which uploaded certificates serve which domains, from the database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import func, select

from router.certificates import Bound
from state import vault
from state.db import snapshot
from state.models import App, Domain, SniEndpoint


class Endpoints:
    """Reads them; what has not changed since the last time is not decrypted again."""

    def __init__(self) -> None:
        self._seen: Any = None
        self._found: Sequence[Bound] = ()

    def __call__(self) -> Sequence[Bound]:
        """All certificates that serve at least one domain."""
        bound = select(func.count(), func.max(Domain.updated_at)).where(Domain.sni_endpoint_id.is_not(None))
        all_of = select(func.count(), func.max(SniEndpoint.updated_at)).select_from(SniEndpoint)
        with snapshot() as session:
            seen = (tuple(session.execute(bound).one()), tuple(session.execute(all_of).one()))
            if seen == self._seen:
                return self._found
            rows: dict[str, SniEndpoint] = {}
            hosts: dict[str, list[str]] = {}
            query = select(SniEndpoint, Domain.hostname).join(Domain, Domain.sni_endpoint_id == SniEndpoint.id)
            for row, hostname in session.execute(query.join(App, App.id == Domain.app_id).where(App.destroying.is_(False))):
                rows[row.id] = row
                hosts.setdefault(row.id, []).append(hostname)
            keys = {id: vault.reveal(row.private_key)["key"] for id, row in rows.items()}
            found = [Bound(id, row.certificate_chain, keys[id], tuple(hosts[id])) for id, row in rows.items()]
        self._seen, self._found = seen, found
        return found
