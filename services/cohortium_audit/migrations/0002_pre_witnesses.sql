-- pre: hospitals as witnesses of their studies' logs: how far each has cosigned, and every cosignature.
CREATE TABLE witness (
    log TEXT NOT NULL,
    site_id TEXT NOT NULL,
    size BIGINT NOT NULL,
    asked_size BIGINT NOT NULL,
    asked_at DOUBLE PRECISION NOT NULL,
    witness_key BYTEA NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (log, site_id)
);

CREATE TABLE cosignature (
    log TEXT NOT NULL,
    size BIGINT NOT NULL,
    site_id TEXT NOT NULL,
    line TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (log, size, site_id)
);
