"""The institution plane of consent as pure functions: signatures, people, states of documents, and the decision.

Consent, aggregator and connector use the same functions; each applies them to its own verified copies.
"""
