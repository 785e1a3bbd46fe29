"""a browser's session knows the host name that it was opened at"""

import sqlalchemy as sa
from alembic import op

revision = '0014'
down_revision = '0013'


def upgrade() -> None:
    op.add_column('web_sessions', sa.Column('host', sa.String(length=253), server_default='', nullable=False))
    op.execute('DELETE FROM web_sessions')  # nobody knows any more at which name those were opened: everybody signs in once more
