"""crashes of dynos are kept"""

import sqlalchemy as sa
from alembic import op

import state.models

revision = '0011'
down_revision = '0010'


def upgrade() -> None:
    op.create_table('crashes',
    sa.Column('app_id', sa.String(length=36), nullable=False),
    sa.Column('dyno', sa.String(length=80), nullable=False),
    sa.Column('release_version', sa.Integer(), nullable=False),
    sa.Column('exit_status', sa.Integer(), nullable=True),
    sa.Column('why', sa.Text(), nullable=True),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('created_at', state.models.Moment(timezone=True), nullable=False),
    sa.Column('updated_at', state.models.Moment(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['app_id'], ['apps.id'], name=op.f('fk_crashes_app_id_apps'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_crashes'))
    )
    with op.batch_alter_table('crashes', schema=None) as batch_op:
        batch_op.create_index('ix_crashes_app_id_created_at', ['app_id', 'created_at'], unique=False)
