"""The tables, as the migrations make them."""

import sqlalchemy as sa

from cohortium_kit.site_keys import SiteKeys

metadata = sa.MetaData()


def _updated() -> tuple[sa.Column[float], sa.Column[str]]:
    """When a row was last changed, and by which transaction."""
    return sa.Column("updated_at", sa.Double, nullable=False), sa.Column("updated_by", sa.Text, nullable=False)


site_keys = SiteKeys(metadata)

grant_word = sa.Table(
    "grant_word",
    metadata,
    sa.Column("study_digest", sa.LargeBinary, primary_key=True),
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("ended", sa.Boolean, nullable=False),
    sa.Column("said_at", sa.Double, nullable=False),
    *_updated(),
)

manifest = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("manifest_json", sa.Text, nullable=False),
)

run = sa.Table(
    "run",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_json", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("last_version", sa.BigInteger),
    sa.Column("attestation_sha256", sa.LargeBinary),
    sa.Column("unreported_bytes_down", sa.BigInteger, nullable=False),
    *_updated(),
)

sum_window = sa.Table(
    "sum_window",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("session_json", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("state_json", sa.Text, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    sa.Column("due_at", sa.Double),
    sa.Column("bytes_down", sa.BigInteger, nullable=False),
    *_updated(),
)

upload = sa.Table(
    "upload",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("site_index", sa.BigInteger, primary_key=True),
    sa.Column("header_json", sa.Text, nullable=False),
    sa.Column("header_hash", sa.LargeBinary, nullable=False),
    sa.Column("edge_commits", sa.LargeBinary, nullable=False),
    sa.Column("complete", sa.Boolean, nullable=False),
    *_updated(),
)

upload_chunk = sa.Table(
    "upload_chunk",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("site_index", sa.BigInteger, primary_key=True),
    sa.Column("chunk", sa.BigInteger, primary_key=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("frame_bytes", sa.BigInteger, nullable=False),
)

answer = sa.Table(
    "answer",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("step", sa.BigInteger, primary_key=True),
    sa.Column("site_index", sa.BigInteger, primary_key=True),
    sa.Column("unmask_json", sa.Text, nullable=False),
)

model_version = sa.Table(
    "model_version",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("model_hash", sa.LargeBinary, nullable=False),
    sa.Column("window_id", sa.LargeBinary, nullable=False),
    sa.Column("parameters_sha256", sa.LargeBinary, nullable=False),
    sa.Column("parameters", sa.BigInteger, nullable=False),
    sa.Column("preprocessing_json", sa.Text, nullable=False),
    sa.Column("content_key", sa.LargeBinary, nullable=False),
    sa.Column("stored", sa.Boolean, nullable=False),
    sa.Column("made_at", sa.Double, nullable=False),
    sa.Column("file_bytes", sa.BigInteger),
    sa.Column("trees", sa.BigInteger),
    sa.Column("retired_by", sa.LargeBinary),
    *_updated(),
)

signed_release = sa.Table(
    "signed_release",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("envelope", sa.LargeBinary, nullable=False),
    sa.Column("proof", sa.Text),
    sa.Column("complete", sa.Boolean, nullable=False),
    *_updated(),
)

strict_key = sa.Table(
    "strict_key",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("secret", sa.LargeBinary, nullable=False),
)

boosting_round = sa.Table(
    "boosting_round",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("round", sa.BigInteger, primary_key=True),
    sa.Column("window_id", sa.LargeBinary, nullable=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
    sa.Column("chain", sa.LargeBinary, nullable=False),
    *_updated(),
)

evaluation = sa.Table(
    "evaluation",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("result_json", sa.Text, nullable=False),
)
