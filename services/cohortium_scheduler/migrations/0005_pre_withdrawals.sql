-- pre: withdrawals that consent told of, what they touch and what became of it; of a run that takes another's place, why.
CREATE TABLE withdrawal (
    withdrawal BYTEA NOT NULL PRIMARY KEY,
    study_id TEXT NOT NULL,
    phase TEXT NOT NULL,
    record_json TEXT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
ALTER TABLE run ADD COLUMN retraining_json TEXT;
