-- pre: whence a sign-in at an identity provider was begun, so that one address cannot begin without end.
ALTER TABLE oidc_request ADD COLUMN address TEXT NOT NULL DEFAULT '';
CREATE INDEX oidc_request_by_address ON oidc_request (address, began_at);
CREATE INDEX oidc_request_by_age ON oidc_request (began_at);
