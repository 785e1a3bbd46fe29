"""Changes of isolation and size that can fail, resizing without a restart, apps that sleep."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    with op.batch_alter_table("apps") as table:
        table.add_column(sa.Column("sleep", sa.String(length=10), nullable=False, server_default="auto"))
        table.add_column(sa.Column("asleep_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("formations") as table:
        table.add_column(sa.Column("live", sa.Boolean(), nullable=False, server_default=sa.false()))
        table.add_column(sa.Column("failure", sa.Text(), nullable=True))


def downgrade() -> None:
    """Take them away."""
    with op.batch_alter_table("formations") as table:
        table.drop_column("failure")
        table.drop_column("live")
    with op.batch_alter_table("apps") as table:
        table.drop_column("asleep_at")
        table.drop_column("sleep")
