"""Create jobs, images, job_events and workers

Revision ID: 0001
Revises:
"""

import sqlalchemy as sa
from alembic import op

import darkroom.db

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "jobs",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner", sa.String(length=64), nullable=False),
        sa.Column("model", sa.String(length=128), nullable=False),
        sa.Column("params", sa.JSON(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("job_class", sa.Integer(), nullable=False),
        sa.Column("start_tag", sa.Double(), nullable=False),
        sa.Column("finish_tag", sa.Double(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("worker_id", sa.String(length=64), nullable=True),
        sa.Column("lease_expires_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("is_alone", sa.Boolean(), nullable=False),
        sa.Column("crashes", sa.Integer(), nullable=False),
        sa.Column("shared_crashes", sa.Integer(), nullable=False),
        sa.Column("is_solo", sa.Boolean(), nullable=False),
        sa.Column("solo_worker_id", sa.String(length=64), nullable=True),
        sa.Column("solo_reserved_until", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("queued_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("started_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("finished_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("deadline_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("cleanup_at", darkroom.db.UtcDateTime(timezone=True), nullable=True),
        sa.Column("error_code", sa.String(length=64), nullable=True),
        sa.Column("error_message", sa.Text(), nullable=True),
        sa.Column("timings", sa.JSON(), nullable=False),
        sa.Column("retry_of", sa.Uuid(), nullable=True),
        sa.Column("event_seq", sa.Integer(), nullable=False),
        sa.CheckConstraint(
            "state IN ('queued', 'running', 'succeeded', 'failed', 'canceled', 'expired')", name=op.f("ck_jobs_state")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_jobs")),
    )
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.create_index(
            "ix_jobs_aging",
            ["job_class", "queued_at"],
            unique=False,
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index(
            "ix_jobs_cleanup",
            ["cleanup_at"],
            unique=False,
            postgresql_where=sa.text("cleanup_at IS NOT NULL"),
            sqlite_where=sa.text("cleanup_at IS NOT NULL"),
        )
        batch_op.create_index(
            "ix_jobs_deadline",
            ["deadline_at"],
            unique=False,
            postgresql_where=sa.text("finished_at IS NULL"),
            sqlite_where=sa.text("finished_at IS NULL"),
        )
        batch_op.create_index(
            "ix_jobs_lease",
            ["lease_expires_at"],
            unique=False,
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )
        batch_op.create_index("ix_jobs_owner", ["owner", "id"], unique=False)
        batch_op.create_index("ix_jobs_owner_state", ["owner", "state", "id"], unique=False)
        batch_op.create_index(
            "ix_jobs_queue",
            ["model", "job_class", "start_tag", "id"],
            unique=False,
            postgresql_where=sa.text("state = 'queued'"),
            sqlite_where=sa.text("state = 'queued'"),
        )
        batch_op.create_index("ix_jobs_retention", ["state", "finished_at"], unique=False)
        batch_op.create_index(
            "ix_jobs_served",
            ["model", "job_class", "start_tag"],
            unique=False,
            postgresql_where=sa.text("attempt > 0"),
            sqlite_where=sa.text("attempt > 0"),
        )
        batch_op.create_index(
            "ix_jobs_share",
            ["owner", "model", "job_class", "finish_tag"],
            unique=False,
            postgresql_where=sa.text("finished_at IS NULL"),
            sqlite_where=sa.text("finished_at IS NULL"),
        )
        batch_op.create_index(
            "ix_jobs_solo",
            ["model", "queued_at"],
            unique=False,
            postgresql_where=sa.text("state = 'queued' AND is_solo"),
            sqlite_where=sa.text("state = 'queued' AND is_solo"),
        )
        batch_op.create_index(
            "ix_jobs_worker",
            ["worker_id"],
            unique=False,
            postgresql_where=sa.text("state = 'running'"),
            sqlite_where=sa.text("state = 'running'"),
        )

    op.create_table(
        "workers",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("device", sa.String(length=128), nullable=False),
        sa.Column("device_memory_bytes", sa.BigInteger(), nullable=False),
        sa.Column("fingerprint", sa.String(length=255), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("slots", sa.Integer(), nullable=False),
        sa.Column("num_jobs", sa.Integer(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("started_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("heartbeat_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.CheckConstraint("state IN ('ready', 'draining')", name=op.f("ck_workers_state")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_workers")),
    )
    op.create_table(
        "images",
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("n", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("thumb_key", sa.String(length=255), nullable=False),
        sa.Column("content_type", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("num_bytes", sa.Integer(), nullable=False),
        sa.Column("seed", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_images_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "n", name=op.f("pk_images")),
    )
    op.create_table(
        "job_events",
        sa.Column("position", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("xid", sa.BigInteger(), nullable=False),
        sa.Column("job_id", sa.Uuid(), nullable=False),
        sa.Column("seq", sa.Integer(), nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.Column("created_at", darkroom.db.UtcDateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_events_job_id_jobs"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("position", name=op.f("pk_job_events")),
        sqlite_autoincrement=True,
    )
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.create_index("ix_job_events_order", ["xid", "position"], unique=False)
        batch_op.create_index("uq_job_events_job_id_seq", ["job_id", "seq"], unique=True)


def downgrade() -> None:
    with op.batch_alter_table("job_events", schema=None) as batch_op:
        batch_op.drop_index("uq_job_events_job_id_seq")
        batch_op.drop_index("ix_job_events_order")

    op.drop_table("job_events")
    op.drop_table("images")
    op.drop_table("workers")
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index(
            "ix_jobs_worker", postgresql_where=sa.text("state = 'running'"), sqlite_where=sa.text("state = 'running'")
        )
        batch_op.drop_index(
            "ix_jobs_solo",
            postgresql_where=sa.text("state = 'queued' AND is_solo"),
            sqlite_where=sa.text("state = 'queued' AND is_solo"),
        )
        batch_op.drop_index(
            "ix_jobs_share",
            postgresql_where=sa.text("finished_at IS NULL"),
            sqlite_where=sa.text("finished_at IS NULL"),
        )
        batch_op.drop_index(
            "ix_jobs_served", postgresql_where=sa.text("attempt > 0"), sqlite_where=sa.text("attempt > 0")
        )
        batch_op.drop_index("ix_jobs_retention")
        batch_op.drop_index(
            "ix_jobs_queue", postgresql_where=sa.text("state = 'queued'"), sqlite_where=sa.text("state = 'queued'")
        )
        batch_op.drop_index("ix_jobs_owner_state")
        batch_op.drop_index("ix_jobs_owner")
        batch_op.drop_index(
            "ix_jobs_lease", postgresql_where=sa.text("state = 'running'"), sqlite_where=sa.text("state = 'running'")
        )
        batch_op.drop_index(
            "ix_jobs_deadline",
            postgresql_where=sa.text("finished_at IS NULL"),
            sqlite_where=sa.text("finished_at IS NULL"),
        )
        batch_op.drop_index(
            "ix_jobs_cleanup",
            postgresql_where=sa.text("cleanup_at IS NOT NULL"),
            sqlite_where=sa.text("cleanup_at IS NOT NULL"),
        )
        batch_op.drop_index(
            "ix_jobs_aging", postgresql_where=sa.text("state = 'queued'"), sqlite_where=sa.text("state = 'queued'")
        )

    op.drop_table("jobs")
