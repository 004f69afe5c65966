-- pre: a round's deadlines and what they rest on. NULL in rows of the version before, and where they are the study's.
ALTER TABLE run_window ADD COLUMN pace_json TEXT;
