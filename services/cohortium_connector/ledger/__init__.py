"""The hospital's privacy ledger: what its patients have been charged, kept in the connector's own database.

`service.Ledger` is what the rest of the connector calls. The rules are in `cohortium_privacy.ledger`, and pure; here
are the rows, their check at the start, and what is told outside.
"""
