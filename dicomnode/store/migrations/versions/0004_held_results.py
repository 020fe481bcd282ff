"""results that a person must look at before they are sent."""

from alembic import op
import sqlalchemy as sa

revision = '0004'
down_revision = '0003'


def upgrade() -> None:
    with op.batch_alter_table('job', schema=None) as batch_op:
        batch_op.add_column(sa.Column('hold', sa.Text(), server_default='', nullable=False))
        batch_op.add_column(sa.Column('released_at', sa.Float(), nullable=True))
