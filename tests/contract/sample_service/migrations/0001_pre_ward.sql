-- Every type that migrations may use; a comment with a semicolon; like this one.
CREATE TABLE ward (
    id {{identity}},
    name TEXT NOT NULL UNIQUE, -- shown to people
    beds BIGINT NOT NULL,
    load DOUBLE PRECISION,
    open BOOLEAN NOT NULL,
    badge BYTEA
);
