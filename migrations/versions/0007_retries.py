"""Find out which jobs were submitted once more

Revision ID: 0007
Revises: 0006
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

IS_RETRY = sa.text("retry_of IS NOT NULL")


def upgrade() -> None:
    """Find out which jobs were submitted once more."""
    op.create_index("ix_jobs_retry", "jobs", ["retry_of"], postgresql_where=IS_RETRY, sqlite_where=IS_RETRY)


def downgrade() -> None:
    """Forget it."""
    op.drop_index("ix_jobs_retry", table_name="jobs")
