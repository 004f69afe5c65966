"""The kit's own tables. They stand in every service's schema, beside the service's own."""

from sqlalchemy import BigInteger, Boolean, Column, Float, LargeBinary, MetaData, Table, Text

kit_metadata = MetaData()

outbox = Table(
    "outbox",
    kit_metadata,
    Column("id", BigInteger, primary_key=True),
    Column("ordering_key", Text, nullable=False),
    Column("exchange", Text, nullable=False),
    Column("routing_key", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("type", Text, nullable=False),
    Column("content_type", Text, nullable=False),
    Column("headers", Text, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("persistent", Boolean, nullable=False),
    Column("ttl_ms", BigInteger),
    Column("correlation_id", Text),
    Column("created_at", Float, nullable=False),
    Column("sent_at", Float),
)
"""Messages committed together with the state that caused them; `cohortium_kit.outbox.Relay` sends them."""

inbox = Table(
    "inbox",
    kit_metadata,
    Column("consumer", Text, primary_key=True),
    Column("message_id", Text, primary_key=True),
    Column("received_at", Float, nullable=False),
)
"""What was done already, one row for each message and consumer."""

lease = Table(
    "lease",
    kit_metadata,
    Column("name", Text, primary_key=True),
    Column("holder", Text, nullable=False),
    Column("token", Text, nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("expires_at", Float, nullable=False),
)
"""Who does a thing that only one may do, and until when."""

event_chain = Table(
    "event_chain",
    kit_metadata,
    Column("key_id", Text, primary_key=True),
    Column("study", Text, primary_key=True),
    Column("series", LargeBinary, nullable=False),
    Column("number", BigInteger, nullable=False),
    Column("digest", LargeBinary, nullable=False),
)
"""The newest audit event that this service or site told in each study's log: its number, and its body's SHA-256."""

probe = Table(
    "probe",
    kit_metadata,
    Column("instance", Text, primary_key=True),
    Column("nonce", Text, nullable=False),
    Column("sent_at", Float, nullable=False),
    Column("seen_at", Float),
)
"""The newest probe of each instance of a service; `cohortium_kit.probe` sends and looks for them."""

mark = Table(
    "mark",
    kit_metadata,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
    Column("updated_at", Float, nullable=False),
)
"""How far a service has come with what it tells once: one value by name (`cohortium_kit.marks`)."""
