"""The aggregator's records: tables, and one function for each thing that is read or written.

Rows go in and out as domain objects. Functions take an open transaction and never commit.
"""
