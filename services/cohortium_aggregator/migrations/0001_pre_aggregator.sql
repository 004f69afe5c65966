-- Sites and members, runs, windows with what came in for them, model versions.
CREATE TABLE site_key (
    site_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    identity_pk BYTEA NOT NULL,
    revoked BOOLEAN NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE manifest (
    study_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    manifest_json TEXT NOT NULL,
    PRIMARY KEY (study_id, version)
);

CREATE TABLE run (
    run_id TEXT NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_json TEXT NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    last_version BIGINT,
    attestation_sha256 BYTEA,
    unreported_bytes_down BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
CREATE INDEX run_by_state ON run (state);

CREATE TABLE sum_window (
    window_id BYTEA NOT NULL,
    step BIGINT NOT NULL,
    run_id TEXT NOT NULL REFERENCES run (run_id),
    study_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    session_json TEXT NOT NULL,
    state TEXT NOT NULL,
    state_json TEXT NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    due_at DOUBLE PRECISION,
    bytes_down BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (window_id, step)
);
CREATE INDEX sum_window_by_due ON sum_window (due_at);
CREATE INDEX sum_window_by_state ON sum_window (state);

CREATE TABLE upload (
    window_id BYTEA NOT NULL,
    step BIGINT NOT NULL,
    site_index BIGINT NOT NULL,
    header_json TEXT NOT NULL,
    header_hash BYTEA NOT NULL,
    edge_commits BYTEA NOT NULL,
    complete BOOLEAN NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (window_id, step, site_index)
);

CREATE TABLE upload_chunk (
    window_id BYTEA NOT NULL,
    step BIGINT NOT NULL,
    site_index BIGINT NOT NULL,
    chunk BIGINT NOT NULL,
    sha256 BYTEA NOT NULL,
    frame_bytes BIGINT NOT NULL,
    PRIMARY KEY (window_id, step, site_index, chunk)
);

CREATE TABLE answer (
    window_id BYTEA NOT NULL,
    step BIGINT NOT NULL,
    site_index BIGINT NOT NULL,
    unmask_json TEXT NOT NULL,
    PRIMARY KEY (window_id, step, site_index)
);

CREATE TABLE model_version (
    run_id TEXT NOT NULL REFERENCES run (run_id),
    version BIGINT NOT NULL,
    model_hash BYTEA NOT NULL,
    window_id BYTEA NOT NULL,
    parameters_sha256 BYTEA NOT NULL,
    parameters BIGINT NOT NULL,
    preprocessing_json TEXT NOT NULL,
    content_key BYTEA NOT NULL,
    stored BOOLEAN NOT NULL,
    made_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (run_id, version)
);

CREATE TABLE evaluation (
    run_id TEXT NOT NULL REFERENCES run (run_id),
    window_id BYTEA NOT NULL,
    round BIGINT NOT NULL,
    version BIGINT NOT NULL,
    result_json TEXT NOT NULL,
    PRIMARY KEY (run_id, window_id)
);
