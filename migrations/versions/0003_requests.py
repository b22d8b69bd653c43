"""Create what the whole of the native API stores

Revision ID: 0003
Revises: 0002
"""

import sqlalchemy as sa
from alembic import op

import darkroom.db

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEPT_BRIEFLY = sa.text("delete_at IS NOT NULL")
IN_BATCH = sa.text("batch_id IS NOT NULL")


def upgrade() -> None:
    """Create what the whole of the native API stores.

    Columns are added one by one, never by a copy of the table: SQLite would empty whatever refers to the dropped one.
    """
    op.add_column("jobs", sa.Column("client_metadata", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("webhook", sa.JSON(), nullable=True))
    op.add_column("jobs", sa.Column("batch_id", sa.Uuid(), nullable=True))
    op.add_column("jobs", sa.Column("retention_seconds", sa.Double(), nullable=True))
    op.add_column("jobs", sa.Column("delete_at", darkroom.db.UtcDateTime(timezone=True), nullable=True))
    op.add_column("jobs", sa.Column("walk_key", sa.String(length=255), nullable=True))
    op.create_index("ix_jobs_delete", "jobs", ["delete_at"], postgresql_where=KEPT_BRIEFLY, sqlite_where=KEPT_BRIEFLY)
    op.create_index("ix_jobs_batch", "jobs", ["batch_id", "state"], postgresql_where=IN_BATCH, sqlite_where=IN_BATCH)
    op.add_column("images", sa.Column("fingerprint", sa.String(length=255), nullable=True))
    op.add_column("images", sa.Column("rows", sa.Integer(), nullable=True))
    op.create_table(
        "batches",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("num_jobs", sa.Integer(), nullable=False),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_created", "batches", ["created_at"])
    op.create_table(
        "idempotent_requests",
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("made_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("owner", "key", name=op.f("pk_idempotent_requests")),
    )
    op.create_index("ix_idempotent_requests_created", "idempotent_requests", ["created_at"])
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("expires_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_expires", "uploads", ["expires_at"])
    op.create_index("ix_uploads_owner", "uploads", ["owner", "id"])
    op.create_table(
        "job_inputs",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_inputs_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", name=op.f("pk_job_inputs")),
    )
    op.create_index("ix_job_inputs_key", "job_inputs", ["key"])


def downgrade() -> None:
    """Take it back."""
    for table in ("job_inputs", "uploads", "idempotent_requests", "batches"):
        op.drop_table(table)
    op.drop_column("images", "rows")
    op.drop_column("images", "fingerprint")
    op.drop_index("ix_jobs_batch", "jobs")
    op.drop_index("ix_jobs_delete", "jobs")
    for column in ("walk_key", "delete_at", "retention_seconds", "batch_id", "webhook", "client_metadata"):
        op.drop_column("jobs", column)
