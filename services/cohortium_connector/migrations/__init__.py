"""Migrations of the connector's spool."""
