-- pre: sites' keys as every service keeps them: a site that is revoked before its key is known stays revoked.
ALTER TABLE site_key ADD COLUMN updated_at DOUBLE PRECISION NOT NULL DEFAULT 0;
ALTER TABLE site_key ADD COLUMN updated_by TEXT NOT NULL DEFAULT '';
