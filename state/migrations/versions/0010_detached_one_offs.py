"""detached one-offs go on after a restart"""

import sqlalchemy as sa
from alembic import op

import state.models

revision = '0010'
down_revision = '0009'


def upgrade() -> None:
    with op.batch_alter_table('dynos', schema=None) as batch_op:
        batch_op.add_column(sa.Column('ends_at', state.models.Moment(timezone=True), nullable=True))
