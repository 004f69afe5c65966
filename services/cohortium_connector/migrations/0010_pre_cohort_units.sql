-- pre: what a cohort counts: rows, where the hospital's table does not say whose each row is. Until now it always did.
ALTER TABLE cohort_snapshot ADD COLUMN unit TEXT NOT NULL DEFAULT 'person';
