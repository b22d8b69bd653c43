"""Remember what an owner has chosen

Revision ID: 0005
Revises: 0004
"""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Remember what an owner has chosen."""
    op.create_table(
        "choices",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.PrimaryKeyConstraint("owner", name=op.f("pk_choices")),
    )


def downgrade() -> None:
    """Forget it."""
    op.drop_table("choices")
