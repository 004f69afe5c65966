-- pre: when a site's report was last put on record in the platform's log; never, of those kept before.
ALTER TABLE preflight ADD COLUMN recorded_at DOUBLE PRECISION;
