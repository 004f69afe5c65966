-- Error feedback: for a run that sends a part of each update's coordinates, which window's residual (a file) goes with the
-- next update, and which open window's upload has taken it.
CREATE TABLE residual (
    run_id TEXT PRIMARY KEY,
    made_by BYTEA,
    taken_by BYTEA,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
