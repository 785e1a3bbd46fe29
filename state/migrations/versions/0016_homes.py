"""a database knows which home it belongs to: with another it would have dynos ended and slugs removed"""

import sqlalchemy as sa
from alembic import op

import state.models

revision = '0016'
down_revision = '0015'


def upgrade() -> None:
    op.create_table('homes',
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('created_at', state.models.Moment(timezone=True), nullable=False),
    sa.Column('updated_at', state.models.Moment(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_homes'))
    )
