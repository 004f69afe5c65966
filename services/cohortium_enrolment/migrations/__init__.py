"""Migrations of enrolment's tables."""
