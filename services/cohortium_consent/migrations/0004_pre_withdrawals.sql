-- pre: withdrawals with what followed from each, until the receipt is handed over.
CREATE TABLE withdrawal_case (
    digest BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    study_digest BYTEA NOT NULL,
    site_id TEXT NOT NULL,
    state TEXT NOT NULL,
    case_json TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
