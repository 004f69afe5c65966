-- Adaptive selection: what a run has come to know of its sites (turns, answers, times), and why each site was asked in a
-- window or not. Both are NULL in rows of the version before, and where a study asks all sites.
ALTER TABLE run ADD COLUMN standings_json TEXT;
ALTER TABLE run_window ADD COLUMN choices_json TEXT;
