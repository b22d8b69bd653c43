"""Say how many rows a worker runs at a step

Revision ID: 0006
Revises: 0005
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Say how many rows a worker runs at a step."""
    op.add_column("workers", sa.Column("rows_per_step", sa.Double(), nullable=True))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("workers", "rows_per_step")
