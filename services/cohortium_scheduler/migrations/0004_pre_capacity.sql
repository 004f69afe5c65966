-- pre: what each site said of its machine and line, in its newest trial.
CREATE TABLE site_capacity (
    site_id TEXT NOT NULL PRIMARY KEY,
    made_at DOUBLE PRECISION NOT NULL,
    capacity_json TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
