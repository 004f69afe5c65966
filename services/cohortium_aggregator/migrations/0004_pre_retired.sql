-- pre: models that officers retired after a withdrawal, by its digest.
ALTER TABLE model_version ADD COLUMN retired_by BYTEA;
