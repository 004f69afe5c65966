"""The tables. Rows of leaf, node, checkpoint and cosignature are written once and never changed."""

import sqlalchemy as sa

from cohortium_kit.site_keys import SiteKeys

metadata = sa.MetaData()

log_table = sa.Table(
    "log",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("checkpointed", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
leaf_table = sa.Table(
    "leaf",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("idx", sa.BigInteger, primary_key=True),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("event_id", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("recorded_at", sa.Double, nullable=False),
    sa.UniqueConstraint("key_id", "event_id"),
)
node_table = sa.Table(
    "node",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("level", sa.BigInteger, primary_key=True),
    sa.Column("idx", sa.BigInteger, primary_key=True),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
checkpoint_table = sa.Table(
    "checkpoint",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
site_keys = SiteKeys(metadata)
manifest_table = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("manifest_json", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
witness_table = sa.Table(
    "witness",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("asked_size", sa.BigInteger, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
    sa.Column("witness_key", sa.LargeBinary, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
cosignature_table = sa.Table(
    "cosignature",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("line", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
)
streamed_table = sa.Table(
    "streamed",
    metadata,
    sa.Column("log", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
