-- pre: consent's newest word on each site's grant, so that no window begins with a site that had left by then.
CREATE TABLE grant_word (
    study_digest BYTEA NOT NULL,
    site_id TEXT NOT NULL,
    ended BOOLEAN NOT NULL,
    said_at DOUBLE PRECISION NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL,
    PRIMARY KEY (study_digest, site_id)
);
