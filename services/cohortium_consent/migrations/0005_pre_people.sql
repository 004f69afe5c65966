-- pre: people who sign in, their roles and sessions. Names and addresses of people are in person.name and
-- person_identity alone, and are erased there; every other table, and the log, knows the opaque id.
CREATE TABLE person (
    person TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    ended BOOLEAN NOT NULL,
    password_hash TEXT,
    setup_digest BYTEA,
    setup_ends_at DOUBLE PRECISION,
    totp_sealed BYTEA,
    totp_confirmed BOOLEAN NOT NULL,
    totp_last_step BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);

CREATE TABLE person_identity (
    issuer TEXT NOT NULL,
    subject TEXT NOT NULL,
    person TEXT NOT NULL,
    PRIMARY KEY (issuer, subject)
);

CREATE TABLE person_role (
    person TEXT NOT NULL,
    role TEXT NOT NULL,
    site_id TEXT NOT NULL,
    study_id TEXT NOT NULL,
    PRIMARY KEY (person, role, site_id, study_id)
);

CREATE TABLE person_session (
    session_digest BYTEA NOT NULL PRIMARY KEY,
    person TEXT NOT NULL,
    method TEXT NOT NULL,
    mfa BOOLEAN NOT NULL,
    began_at DOUBLE PRECISION NOT NULL,
    seen_at DOUBLE PRECISION NOT NULL,
    proved_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX person_session_by_person ON person_session (person);

CREATE TABLE sign_in_attempt (
    source TEXT NOT NULL PRIMARY KEY,
    failures BIGINT NOT NULL,
    since DOUBLE PRECISION NOT NULL
);

CREATE TABLE oidc_request (
    state_digest BYTEA NOT NULL PRIMARY KEY,
    provider TEXT NOT NULL,
    browser_digest BYTEA NOT NULL,
    nonce TEXT NOT NULL,
    verifier TEXT NOT NULL,
    session_digest BYTEA,
    began_at DOUBLE PRECISION NOT NULL
);
