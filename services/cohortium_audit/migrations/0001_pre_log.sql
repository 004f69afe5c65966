-- pre: the logs. Rows of leaf, node and checkpoint are written once; an operator may take UPDATE and DELETE on them away
-- from the service's role, which never uses either.
CREATE TABLE log (
    name TEXT NOT NULL PRIMARY KEY,
    size BIGINT NOT NULL,
    checkpointed BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE leaf (
    log TEXT NOT NULL,
    idx BIGINT NOT NULL,
    key_id TEXT NOT NULL,
    event_id TEXT NOT NULL,
    type TEXT NOT NULL,
    data BYTEA NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (log, idx),
    UNIQUE (key_id, event_id)
);
CREATE INDEX leaf_by_event ON leaf (event_id);

CREATE TABLE node (
    log TEXT NOT NULL,
    level BIGINT NOT NULL,
    idx BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    PRIMARY KEY (log, level, idx)
);

CREATE TABLE checkpoint (
    log TEXT NOT NULL,
    size BIGINT NOT NULL,
    root BYTEA NOT NULL,
    note TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (log, size)
);

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
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (study_id, version)
);
