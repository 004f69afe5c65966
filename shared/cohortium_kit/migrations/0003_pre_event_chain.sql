-- pre: may run while the version before is still serving.
CREATE TABLE event_chain (
    key_id TEXT NOT NULL,
    study TEXT NOT NULL,
    series BYTEA NOT NULL,
    number BIGINT NOT NULL,
    digest BYTEA NOT NULL,
    PRIMARY KEY (key_id, study)
);
