-- The log's proof that it holds the release (C2SP tlog-proof). Until it is there, the model is a candidate.
ALTER TABLE signed_release ADD COLUMN proof TEXT;
