-- pre: logins of sites at the broker that were accepted, each with its end.
CREATE TABLE broker_pass (
    site_id TEXT NOT NULL,
    nonce BYTEA NOT NULL,
    standing TEXT NOT NULL,
    issued_at DOUBLE PRECISION NOT NULL,
    ends_at DOUBLE PRECISION NOT NULL,
    first_seen DOUBLE PRECISION NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (site_id, nonce, standing)
);
