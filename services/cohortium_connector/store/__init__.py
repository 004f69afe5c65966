"""The spool's records: one module per aggregate, one function per thing that is read or written.

Functions take the open transaction, domain objects go in and out, and `by` names who changed a row.
"""
