-- pre: which patients were used: the cohort that was frozen under each grant, and every later one with its salt. Persons
-- are in no row; their tags are in files beside the database, and say nothing without the salt.
CREATE TABLE approved_cohort (
    grant_digest BYTEA NOT NULL PRIMARY KEY,
    query_digest BYTEA NOT NULL,
    persons BIGINT NOT NULL,
    root BYTEA NOT NULL,
    taken_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE cohort_snapshot (
    context BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    round BIGINT NOT NULL,
    purpose TEXT NOT NULL,
    salt BYTEA NOT NULL,
    root BYTEA NOT NULL,
    persons BIGINT NOT NULL,
    permitted TEXT NOT NULL,
    taken_at DOUBLE PRECISION NOT NULL
);
