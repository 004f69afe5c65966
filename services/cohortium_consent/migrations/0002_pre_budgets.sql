-- pre: what hospitals said of their privacy ledgers, and what each run's plan costs.
CREATE TABLE ledger_statement (
    site_id TEXT NOT NULL,
    run_id TEXT NOT NULL,
    part TEXT NOT NULL,
    reason TEXT NOT NULL,
    first_step BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    study_id TEXT NOT NULL,
    statement_json TEXT NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (site_id, run_id, part, reason, first_step, attempt)
);

CREATE TABLE run_price (
    run_id TEXT NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_digest BYTEA NOT NULL,
    prices_json TEXT NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL
);
