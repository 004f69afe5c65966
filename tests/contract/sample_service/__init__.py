"""A service with one table, to migrate in tests."""
