"""Federated trees: public bins from sums, model texts, random trees, evaluation. Bytes and integers in, bytes out."""
