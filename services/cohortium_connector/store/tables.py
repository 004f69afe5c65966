"""The tables of the spool, as the migrations make them."""

import sqlalchemy as sa

from cohortium_kit.consent_records import ConsentRecords

metadata = sa.MetaData()


def _changes() -> tuple[sa.Column[float], sa.Column[str]]:
    return sa.Column("updated_at", sa.Double, nullable=False), sa.Column("updated_by", sa.Text, nullable=False)


site = sa.Table(
    "site",
    metadata,
    sa.Column("site_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("federation", sa.Text, nullable=False),
    sa.Column("registered", sa.Boolean, nullable=False),
    sa.Column("refused", sa.Text, nullable=False),
    sa.Column("generation", sa.BigInteger, nullable=False),
    *_changes(),
)
manifest = sa.Table(
    "manifest",
    metadata,
    sa.Column("study_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("manifest_hash", sa.LargeBinary, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("manifest_json", sa.Text, nullable=False),
)
study = sa.Table(
    "study",
    metadata,
    sa.Column("study_digest", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_json", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("offered_at", sa.Double, nullable=False),
    *_changes(),
)
run = sa.Table(
    "run",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    *_changes(),
)
retired_model = sa.Table(
    "retired_model",
    metadata,
    sa.Column("model_hash", sa.LargeBinary, primary_key=True),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("withdrawal", sa.LargeBinary, nullable=False),
)
approved_cohort = sa.Table(
    "approved_cohort",
    metadata,
    sa.Column("grant_digest", sa.LargeBinary, primary_key=True),
    sa.Column("query_digest", sa.LargeBinary, nullable=False),
    sa.Column("persons", sa.BigInteger, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("taken_at", sa.Double, nullable=False),
)
cohort_snapshot = sa.Table(
    "cohort_snapshot",
    metadata,
    sa.Column("context", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("round", sa.BigInteger, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("salt", sa.LargeBinary, nullable=False),
    sa.Column("root", sa.LargeBinary, nullable=False),
    sa.Column("persons", sa.BigInteger, nullable=False),
    sa.Column("permitted", sa.Text, nullable=False),
    sa.Column("taken_at", sa.Double, nullable=False),
    sa.Column("unit", sa.Text, nullable=False),
)
site_grant = sa.Table(
    "site_grant",
    metadata,
    sa.Column("grant_digest", sa.LargeBinary, primary_key=True),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("grant_json", sa.Text, nullable=False),
    sa.Column("withdrawn_at", sa.Double),
    *_changes(),
)
site_window = sa.Table(
    "site_window",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("window_id", sa.LargeBinary, nullable=False),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("study_digest", sa.LargeBinary, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("phase", sa.Text, nullable=False),
    sa.Column("state_json", sa.Text, nullable=False),
    sa.Column("params_json", sa.Text, nullable=False),
    sa.Column("params_hash", sa.LargeBinary, nullable=False),
    sa.Column("expires_at", sa.Double, nullable=False),
    *_changes(),
)
window_material = sa.Table(
    "window_material",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("keys", sa.LargeBinary),
    sa.Column("own_box", sa.LargeBinary),
    sa.Column("ready_json", sa.Text),
    sa.Column("roster_json", sa.Text),
    sa.Column("header_json", sa.Text),
    sa.Column("survivors_json", sa.Text),
    sa.Column("cert_json", sa.Text),
    sa.Column("echo_json", sa.Text),
    sa.Column("unmask_json", sa.Text),
    sa.Column("vote_json", sa.Text),
    sa.Column("receipt_json", sa.Text),
    sa.Column("session_key_json", sa.Text),
)
confirmed_set = sa.Table(
    "confirmed_set",
    metadata,
    sa.Column("window_id", sa.LargeBinary, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("base_model_hash", sa.LargeBinary, nullable=False),
    sa.Column("members_json", sa.Text, nullable=False),
    sa.Column("confirmed_at", sa.Double, nullable=False),
)
product = sa.Table(
    "product",
    metadata,
    sa.Column("product_id", sa.Text, primary_key=True),
    sa.Column("study_id", sa.Text, nullable=False),
    sa.Column("run_id", sa.Text, nullable=False),
    sa.Column("purpose", sa.Text, nullable=False),
    sa.Column("base_version", sa.BigInteger),
    sa.Column("base_model_hash", sa.LargeBinary, nullable=False),
    sa.Column("row_count", sa.BigInteger, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("window_id", sa.LargeBinary),
    *_changes(),
    sa.Column("data_digest", sa.LargeBinary),
    sa.Column("noise_json", sa.Text),
)
noise_seed = sa.Table(
    "noise_seed",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("purpose", sa.Text, primary_key=True),
    sa.Column("task", sa.LargeBinary, nullable=False),
    sa.Column("seed", sa.LargeBinary, nullable=False),
    *_changes(),
)
residual = sa.Table(
    "residual",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("made_by", sa.LargeBinary),
    sa.Column("taken_by", sa.LargeBinary),
    *_changes(),
)
run_cohort = sa.Table(
    "run_cohort",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("members_json", sa.Text, nullable=False),
    sa.Column("data_digest", sa.LargeBinary, nullable=False),
    *_changes(),
)
model = sa.Table(
    "model",
    metadata,
    sa.Column("run_id", sa.Text, primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("model_hash", sa.LargeBinary, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("offer_json", sa.Text),
    sa.Column("seal_key", sa.LargeBinary, nullable=False),
    sa.Column("have", sa.LargeBinary, nullable=False),
    *_changes(),
)
consent_records = ConsentRecords(metadata)
awaited_event = sa.Table(
    "awaited_event",
    metadata,
    sa.Column("event_id", sa.Text, primary_key=True),
    sa.Column("study", sa.Text, nullable=False),
    sa.Column("routing_key", sa.Text, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("sent_before", sa.Double, nullable=False),
    sa.Column("sent_at", sa.Double, nullable=False),
    sa.Column("asked_at", sa.Double, nullable=False),
)
watched_log = sa.Table(
    "watched_log",
    metadata,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("grown_at", sa.Double, nullable=False),
)
log_alarm = sa.Table(
    "log_alarm",
    metadata,
    sa.Column("study", sa.Text, primary_key=True),
    sa.Column("code", sa.Text, primary_key=True),
    sa.Column("since", sa.Double, nullable=False),
)
