-- Models of trees: their files have a size of their own, a strict session has a key for its results, and the boosting
-- rounds that stand are kept until the run's model is made.
ALTER TABLE model_version ADD COLUMN file_bytes BIGINT;
ALTER TABLE model_version ADD COLUMN trees BIGINT;

CREATE TABLE strict_key (
    window_id BYTEA NOT NULL PRIMARY KEY,
    secret BYTEA NOT NULL
);

CREATE TABLE boosting_round (
    run_id TEXT NOT NULL REFERENCES run (run_id),
    round BIGINT NOT NULL,
    window_id BYTEA NOT NULL,
    content BYTEA NOT NULL,
    chain BYTEA NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (run_id, round)
);
