-- pre: what hospitals and officers signed, and whose key is whose.
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
    study_digest BYTEA NOT NULL,
    manifest_json TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (study_id, version)
);

CREATE TABLE site_grant (
    grant_digest BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_digest BYTEA NOT NULL,
    site_id TEXT NOT NULL,
    grant_json TEXT NOT NULL,
    state TEXT NOT NULL,
    ended_at DOUBLE PRECISION,
    ended_reason TEXT,
    announced BOOLEAN NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
CREATE INDEX site_grant_by_study ON site_grant (study_digest, site_id);
CREATE INDEX site_grant_by_site ON site_grant (site_id);

CREATE TABLE withdrawal (
    study_digest BYTEA NOT NULL,
    site_id TEXT NOT NULL,
    effective_at DOUBLE PRECISION NOT NULL,
    withdrawal_json TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (study_digest, site_id)
);
