"""What integrators read from the stream `entries.log`: each recorded event as its log holds it, one message each.

The body is the entry, byte for byte: SHA-256 of a zero byte and the body is its leaf in the log's tree. The headers say
which log it is in, and where. An entry may come again; whoever takes only the one that is next in its log has each
once, in the log's order.
"""

ENTRY_TYPE = "cohortium.audit.entry"
ENTRY_CONTENT_TYPE = "application/json"
LOG_HEADER = "cohortium-log"
"""The study, or `-` for the log of what belongs to no study."""
INDEX_HEADER = "cohortium-index"
"""Decimal, from 0."""
LEAF_HEADER = "cohortium-leaf-hash"
"""Hexadecimal."""
