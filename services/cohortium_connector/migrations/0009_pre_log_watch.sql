-- pre: what this hospital waits for in its studies' logs, and the alarms that stand.
CREATE TABLE awaited_event (
    event_id TEXT NOT NULL PRIMARY KEY,
    study TEXT NOT NULL,
    routing_key TEXT NOT NULL,
    type TEXT NOT NULL,
    headers TEXT NOT NULL,
    body BLOB NOT NULL,
    sent_before DOUBLE PRECISION NOT NULL,
    sent_at DOUBLE PRECISION NOT NULL,
    asked_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX awaited_event_of_study ON awaited_event (study, asked_at);

CREATE TABLE watched_log (
    study TEXT NOT NULL PRIMARY KEY,
    size BIGINT NOT NULL,
    grown_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE log_alarm (
    study TEXT NOT NULL,
    code TEXT NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (study, code)
);
