-- pre: may run while the version before is still serving.
-- The privacy ledger: signed, hash-chained entries, only ever added. The columns beside the entry repeat what it says,
-- so that the database itself refuses a second row for the same steps. Triggers are written for SQLite, which the spool
-- always is.
CREATE TABLE ledger_row (
    sequence BIGINT NOT NULL PRIMARY KEY,
    site_id TEXT NOT NULL,
    kind TEXT NOT NULL,
    block TEXT NOT NULL,
    run_id TEXT NOT NULL,
    part TEXT NOT NULL,
    first_step BIGINT NOT NULL,
    steps BIGINT NOT NULL,
    state TEXT NOT NULL,
    attempt BIGINT NOT NULL,
    window_id TEXT NOT NULL,
    entry BYTEA NOT NULL,
    sig BYTEA NOT NULL,
    entry_hash BYTEA NOT NULL UNIQUE,
    recorded_by TEXT NOT NULL
);

CREATE UNIQUE INDEX ledger_row_steps ON ledger_row (site_id, block, run_id, part, first_step, steps, state, attempt, window_id)
WHERE kind IN ('PLAN', 'STEPS');

CREATE TRIGGER ledger_row_is_final BEFORE UPDATE ON ledger_row
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only: add an entry'); END;

CREATE TRIGGER ledger_row_stays BEFORE DELETE ON ledger_row
BEGIN SELECT RAISE(ABORT, 'the privacy ledger is append-only: nothing is deleted'); END;
