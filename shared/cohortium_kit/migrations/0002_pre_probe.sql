-- pre: may run while the version before is still serving.
CREATE TABLE probe (
    instance TEXT NOT NULL PRIMARY KEY,
    nonce TEXT NOT NULL,
    sent_at DOUBLE PRECISION NOT NULL,
    seen_at DOUBLE PRECISION
);
