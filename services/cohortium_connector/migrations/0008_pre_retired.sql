-- pre: models that officers retired after a withdrawal: no work starts from them here.
CREATE TABLE retired_model (
    model_hash BLOB NOT NULL PRIMARY KEY,
    run_id TEXT NOT NULL,
    withdrawal BLOB NOT NULL
);
