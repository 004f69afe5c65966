-- pre: the newest preflight report of each site.
CREATE TABLE preflight (
    site_id TEXT NOT NULL PRIMARY KEY,
    report_json TEXT NOT NULL,
    received_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
