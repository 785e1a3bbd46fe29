"""restarts are counted: the moments of their requests meant nothing once a clock had been set back"""

import sqlalchemy as sa
from alembic import op

revision = '0015'
down_revision = '0014'


def upgrade() -> None:
    for table in ('apps', 'formations', 'dynos'):
        op.add_column(table, sa.Column('restarts', sa.Integer(), server_default='0', nullable=False))
    # restarted_at stays where it is: processes of the version before read it until they are replaced (state.models.LEAVING)
