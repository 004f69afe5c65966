-- What people signed so that a run's model may be used. `complete`: every signature that is needed is there, and ours.
CREATE TABLE signed_release (
    run_id TEXT NOT NULL PRIMARY KEY REFERENCES run (run_id),
    envelope BYTEA NOT NULL,
    complete BOOLEAN NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
