"""The offline verifier: what an audit bundle proves, for whoever has one; no network, no database, no account."""
