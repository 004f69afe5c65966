"""Tables of signed consent documents, of the acts under them and of the people who sign: the same at consent and at
every connector, each with copies of its own.

Records, acts and cards only ever come in: nothing here takes one away.
"""

from typing import Any

import sqlalchemy as sa
from pydantic import TypeAdapter

from cohortium_kit.db import Tx
from cohortium_messages.consent import Act, ConsentFile, Document, PersonCard, Record
from cohortium_protocol.consent.files import acts_of, merge
from cohortium_protocol.consent.signing import act_digest, card_digest, record_digest

_DOCUMENT: TypeAdapter[Document] = TypeAdapter(Document)


class ConsentRecords:
    """The three tables in a service's own metadata; its migrations make them."""

    def __init__(self, metadata: sa.MetaData) -> None:
        self._record = sa.Table(
            "consent_record",
            metadata,
            sa.Column("record_digest", sa.LargeBinary, primary_key=True),
            sa.Column("kind", sa.Text, nullable=False),
            sa.Column("document_json", sa.Text, nullable=False),
            sa.Column("recorded_at", sa.Double, nullable=False),
        )
        self._act = sa.Table(
            "consent_act",
            metadata,
            sa.Column("act_digest", sa.LargeBinary, primary_key=True),
            sa.Column("record_digest", sa.LargeBinary, nullable=False),
            sa.Column("act_json", sa.Text, nullable=False),
            sa.Column("recorded_at", sa.Double, nullable=False),
        )
        self._person = sa.Table(
            "consent_person",
            metadata,
            sa.Column("card_digest", sa.LargeBinary, primary_key=True),
            sa.Column("card_json", sa.Text, nullable=False),
            sa.Column("recorded_at", sa.Double, nullable=False),
        )
        record, act, person = self._record.c, self._act.c, self._person.c
        # Asked several times a round, so built once.
        self._documents = sa.select(record.record_digest, record.document_json).order_by(
            record.recorded_at, record.record_digest
        )
        self._acts = sa.select(act.record_digest, act.act_json).order_by(act.recorded_at, act.act_digest)
        self._cards = sa.select(person.card_json).order_by(person.recorded_at, person.card_digest)

    async def load(self, tx: Tx) -> ConsentFile:
        """Everything that is known, in the order in which it came."""
        documents = await tx.rows(self._documents)
        acts: dict[bytes, list[Act]] = {}
        for row in await tx.rows(self._acts):
            acts.setdefault(row.record_digest, []).append(Act.model_validate_json(row.act_json))
        records = tuple(
            Record(document=_DOCUMENT.validate_json(row.document_json), acts=tuple(acts.pop(row.record_digest, ())))
            for row in documents
        )
        people = tuple(PersonCard.model_validate_json(row.card_json) for row in await tx.rows(self._cards))
        # What is left is no record's: it ends a card.
        ended = tuple(one for group in acts.values() for one in group)
        return ConsentFile(people=people, ended_cards=ended, records=records)

    async def extent(self, tx: Tx) -> tuple[int, ...]:
        """Numbers that change whenever something new is known."""
        said = sa.select(sa.func.count()).select_from(self._act)
        cards = sa.select(sa.func.coalesce(sa.func.sum(sa.func.length(self._person.c.card_json)), 0))
        return int(await tx.scalar(said) or 0), int(await tx.scalar(cards) or 0)

    async def add(self, tx: Tx, added: ConsentFile) -> frozenset[bytes]:
        """Add what is new of a verified file; returns the digests of records and cards about which something is new.

        Raises `DocumentRefused` where a record would have too many acts.
        """
        known = await self.load(tx)
        merged = merge(known, added)
        changed = await self._add_records(tx, known, merged)
        changed |= await self._add_acts(tx, known, merged)
        return frozenset(changed | await self._add_people(tx, known, merged))

    async def _add_records(self, tx: Tx, known: ConsentFile, merged: ConsentFile) -> set[bytes]:
        before = {record_digest(one.document) for one in known.records}
        changed = set()
        for record in merged.records:
            digest = record_digest(record.document)
            if digest not in before:
                values: dict[str, Any] = {"record_digest": digest, "kind": record.document.kind}
                values |= {"document_json": record.document.model_dump_json(), "recorded_at": tx.now}
                await tx.execute(sa.insert(self._record).values(values))
                changed.add(digest)
        return changed

    async def _add_acts(self, tx: Tx, known: ConsentFile, merged: ConsentFile) -> set[bytes]:
        before = {act_digest(act) for act in acts_of(known)}
        changed = set()
        for act in acts_of(merged):
            if act_digest(act) not in before:
                values: dict[str, Any] = {"act_digest": act_digest(act), "record_digest": act.record}
                values |= {"act_json": act.model_dump_json(), "recorded_at": tx.now}
                await tx.execute(sa.insert(self._act).values(values))
                changed.add(act.record)
        return changed

    async def _add_people(self, tx: Tx, known: ConsentFile, merged: ConsentFile) -> set[bytes]:
        before = {card_digest(card): card for card in known.people}
        changed = set()
        for card in merged.people:
            digest, text = card_digest(card), card.model_dump_json()
            if digest not in before:
                values: dict[str, Any] = {"card_digest": digest, "card_json": text, "recorded_at": tx.now}
                await tx.execute(sa.insert(self._person).values(values))
            elif before[digest] != card:
                vouched = sa.update(self._person).where(self._person.c.card_digest == digest)
                await tx.execute(vouched.values(card_json=text))
            else:
                continue
            changed.add(digest)
        return changed
