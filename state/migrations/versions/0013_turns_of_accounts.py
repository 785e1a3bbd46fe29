"""builds are found by when they were made: whose last is the longest ago"""

from alembic import op

revision = '0013'
down_revision = '0012'


def upgrade() -> None:
    op.create_index('ix_builds_created_at', 'builds', ['created_at'])
