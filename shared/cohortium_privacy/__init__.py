"""Differential privacy: accounting, plans, budgets and mechanisms, without any input or output."""
