-- pre: how far each log is in the stream that integrators read.
CREATE TABLE streamed (
    log TEXT NOT NULL PRIMARY KEY,
    size BIGINT NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL,
    updated_by TEXT NOT NULL
);
