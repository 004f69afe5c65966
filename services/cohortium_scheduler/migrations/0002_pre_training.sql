-- Strict sessions: who may be in a window's cohort, and what a run's sessions have come to (first roster, trees, chain,
-- checkpoint). Both are NULL in rows of the version before: anyone, and nothing.
ALTER TABLE run ADD COLUMN training_json TEXT;
ALTER TABLE run_window ADD COLUMN cohort_json TEXT;
