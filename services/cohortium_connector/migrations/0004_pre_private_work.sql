-- pre: may run while the version before is still serving.
-- Private work: what noise is in a finished vector, and the secret seed of work that is being done, so that it has the
-- same noise again after a crash. A seed is deleted with the commit that keeps the vector made with it.
ALTER TABLE product ADD COLUMN noise_json TEXT;

CREATE TABLE noise_seed (
    run_id TEXT NOT NULL,
    purpose TEXT NOT NULL,
    task BYTEA NOT NULL,
    seed BYTEA NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (run_id, purpose)
);
