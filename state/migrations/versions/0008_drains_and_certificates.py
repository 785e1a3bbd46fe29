"""log drains, SNI endpoints"""

import sqlalchemy as sa
from alembic import op

import state.models

revision = '0008'
down_revision = '0007'


def upgrade() -> None:
    op.create_table('log_drains',
    sa.Column('app_id', sa.String(length=36), nullable=False),
    sa.Column('token', sa.String(length=40), nullable=False),
    sa.Column('url', sa.LargeBinary(), nullable=False),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('created_at', state.models.Moment(timezone=True), nullable=False),
    sa.Column('updated_at', state.models.Moment(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['app_id'], ['apps.id'], name=op.f('fk_log_drains_app_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_log_drains')),
    sa.UniqueConstraint('token', name=op.f('uq_log_drains_token'))
    )
    with op.batch_alter_table('log_drains', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_log_drains_app_id'), ['app_id'], unique=False)

    op.create_table('sni_endpoints',
    sa.Column('app_id', sa.String(length=36), nullable=False),
    sa.Column('name', sa.String(length=60), nullable=False),
    sa.Column('certificate_chain', sa.Text(), nullable=False),
    sa.Column('private_key', sa.LargeBinary(), nullable=False),
    sa.Column('id', sa.String(length=36), nullable=False),
    sa.Column('created_at', state.models.Moment(timezone=True), nullable=False),
    sa.Column('updated_at', state.models.Moment(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['app_id'], ['apps.id'], name=op.f('fk_sni_endpoints_app_id'), ondelete='CASCADE'),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_sni_endpoints')),
    sa.UniqueConstraint('app_id', 'name', name=op.f('uq_sni_endpoints_app_id_name'))
    )
    with op.batch_alter_table('domains', schema=None) as batch_op:
        batch_op.add_column(sa.Column('sni_endpoint_id', sa.String(length=36), nullable=True))
        batch_op.create_index(batch_op.f('ix_domains_sni_endpoint_id'), ['sni_endpoint_id'], unique=False)
        batch_op.create_foreign_key(
            batch_op.f('fk_domains_sni_endpoint_id'), 'sni_endpoints', ['sni_endpoint_id'], ['id'], ondelete='SET NULL'
        )
