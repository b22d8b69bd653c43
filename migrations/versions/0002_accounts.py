"""Create API keys and quotas

Revision ID: 0002
Revises: 0001
"""

import sqlalchemy as sa
from alembic import op

import darkroom.db

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

QUEUED_BY_KEY = sa.text("state = 'queued' AND key_id IS NOT NULL")


def upgrade() -> None:
    """Create API keys and quotas."""
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("weight", sa.Double(), nullable=False),
        sa.Column("max_queued", sa.Integer(), nullable=True),
        sa.Column("megapixel_steps_per_day", sa.Double(), nullable=True),
        sa.Column("requests_per_minute", sa.Integer(), nullable=True),
        sa.Column("used_on", sa.Date(), nullable=True),
        sa.Column("used_megapixel_steps", sa.Double(), nullable=False),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("last_used_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index("uq_api_keys_sha256", "api_keys", ["sha256"], unique=True)
    op.create_table(
        "intake",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("paused_by", sa.String(length=64), nullable=False),
        sa.Column("paused_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_intake")),
    )
    op.add_column("jobs", sa.Column("key_id", sa.Uuid(), nullable=True))
    op.create_index("ix_jobs_key", "jobs", ["key_id"], postgresql_where=QUEUED_BY_KEY, sqlite_where=QUEUED_BY_KEY)
    op.add_column("workers", sa.Column("is_drain_wanted", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """Take it back."""
    op.drop_column("workers", "is_drain_wanted")
    op.drop_index("ix_jobs_key", "jobs")
    op.drop_column("jobs", "key_id")
    op.drop_table("intake")
    op.drop_table("api_keys")
