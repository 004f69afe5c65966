-- pre: the site's own copies of signed consent documents, of the signatures under them, and of the people who sign.
CREATE TABLE consent_record (
    record_digest BYTEA NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    document_json TEXT NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE consent_act (
    act_digest BYTEA NOT NULL PRIMARY KEY,
    record_digest BYTEA NOT NULL,
    act_json TEXT NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE consent_person (
    card_digest BYTEA NOT NULL PRIMARY KEY,
    card_json TEXT NOT NULL,
    recorded_at DOUBLE PRECISION NOT NULL
);
