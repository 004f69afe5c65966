-- pre: may run while the version before is still serving.
-- The cohort of a run's first strict session and what this site's training rows were then. Both must stay as they are:
-- two sums over the same rows whose cohorts differ by one show that site's part, and over one cohort but with changed
-- rows, the change.
CREATE TABLE run_cohort (
    run_id TEXT NOT NULL PRIMARY KEY,
    members_json TEXT NOT NULL,
    data_digest BYTEA NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

ALTER TABLE product ADD COLUMN data_digest BYTEA;

ALTER TABLE window_material ADD COLUMN session_key_json TEXT;
