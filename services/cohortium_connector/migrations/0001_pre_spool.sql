-- pre: may run while the version before is still serving.
CREATE TABLE site (
    site_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    federation TEXT NOT NULL,
    registered BOOLEAN NOT NULL,
    refused TEXT NOT NULL,
    generation BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE manifest (
    study_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    manifest_hash BYTEA NOT NULL,
    study_digest BYTEA NOT NULL,
    manifest_json TEXT NOT NULL,
    PRIMARY KEY (study_id, version)
);

CREATE TABLE study (
    study_digest BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_json TEXT NOT NULL,
    state TEXT NOT NULL,
    offered_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE run (
    run_id TEXT NOT NULL PRIMARY KEY,
    study_digest BYTEA NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE site_grant (
    grant_digest BYTEA NOT NULL PRIMARY KEY,
    study_digest BYTEA NOT NULL,
    grant_json TEXT NOT NULL,
    withdrawn_at DOUBLE PRECISION,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE site_window (
    sequence {{identity}},
    window_id BYTEA NOT NULL UNIQUE,
    study_id TEXT NOT NULL,
    study_digest BYTEA NOT NULL,
    run_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    phase TEXT NOT NULL,
    state_json TEXT NOT NULL,
    params_json TEXT NOT NULL,
    params_hash BYTEA NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
CREATE INDEX site_window_phase ON site_window (phase);

-- What a window needs while it is open: secrets and saved messages. The row is deleted when the window ends (R8).
CREATE TABLE window_material (
    window_id BYTEA NOT NULL PRIMARY KEY,
    keys BYTEA,
    own_box BYTEA,
    ready_json TEXT,
    roster_json TEXT,
    header_json TEXT,
    survivors_json TEXT,
    cert_json TEXT,
    echo_json TEXT,
    unmask_json TEXT,
    vote_json TEXT,
    receipt_json TEXT
);

-- Survivor sets that this site confirmed and whose sum may have been opened: rule R9 compares with them, for ever.
CREATE TABLE confirmed_set (
    window_id BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    base_model_hash BYTEA NOT NULL,
    members_json TEXT NOT NULL,
    confirmed_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE product (
    product_id TEXT NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    base_version BIGINT,
    base_model_hash BYTEA NOT NULL,
    row_count BIGINT NOT NULL,
    state TEXT NOT NULL,
    window_id BYTEA,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE model (
    run_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    model_hash BYTEA NOT NULL,
    state TEXT NOT NULL,
    offer_json TEXT,
    seal_key BYTEA NOT NULL,
    have BYTEA NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (run_id, version)
);
