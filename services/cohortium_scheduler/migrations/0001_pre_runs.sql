-- Runs, their windows, the grants and manifests they rest on.
CREATE TABLE run (
    run_id TEXT PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_digest BYTEA NOT NULL,
    study_json TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    parameters BIGINT,
    training_rows BIGINT,
    enough_grants_since DOUBLE PRECISION,
    created_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
CREATE INDEX run_by_state ON run (state);
CREATE INDEX run_by_digest ON run (study_digest);

CREATE TABLE run_window (
    window_id BYTEA PRIMARY KEY,
    run_id TEXT NOT NULL REFERENCES run (run_id),
    sequence BIGINT NOT NULL,
    purpose TEXT NOT NULL,
    round BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    phase TEXT NOT NULL,
    state_json TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    UNIQUE (run_id, sequence)
);
CREATE INDEX run_window_by_phase ON run_window (phase);

CREATE TABLE model_version (
    run_id TEXT NOT NULL REFERENCES run (run_id),
    version BIGINT NOT NULL,
    model_hash BYTEA NOT NULL,
    window_id BYTEA NOT NULL,
    PRIMARY KEY (run_id, version)
);

CREATE TABLE manifest (
    study_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    study_digest BYTEA NOT NULL,
    manifest_json TEXT NOT NULL,
    PRIMARY KEY (study_id, version)
);

CREATE TABLE site_grant (
    study_digest BYTEA NOT NULL,
    site_id TEXT NOT NULL,
    grant_digest BYTEA NOT NULL,
    not_after DOUBLE PRECISION NOT NULL,
    ended_reason TEXT,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (study_digest, site_id)
);

CREATE TABLE site_key (
    site_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    identity_pk BYTEA NOT NULL,
    revoked BOOLEAN NOT NULL
);
