"""Migrations of the audit service's tables."""
