-- pre: sites in all their states, and the manifests that officers signed.
CREATE TABLE site (
    site_id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    identity_pk BYTEA,
    sealed_token BYTEA,
    expires_at DOUBLE PRECISION,
    since DOUBLE PRECISION,
    reason TEXT,
    created_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
CREATE INDEX site_by_name ON site (name);

CREATE TABLE manifest (
    study_id TEXT NOT NULL,
    version BIGINT NOT NULL,
    manifest_hash BYTEA NOT NULL,
    manifest_json TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (study_id, version)
);
