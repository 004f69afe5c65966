"""What integrators get: the shipped consumer reads the real stream, as its own user, and misses nothing."""

import asyncio
import os
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from sqlalchemy import update

from cohortium_audit.app import App
from cohortium_audit.settings import AuditSettings
from cohortium_audit.store.tables import streamed_table
from cohortium_kit.amqp import RabbitBus
from cohortium_kit.bus import Outgoing
from cohortium_messages.governance import ManifestPublished, SiteRegistered
from cohortium_protocol.translog import leaf_hash
from governance_stage import STUDY, Stage, eventually, real_stage, running
from study_story import signed, study_lines

pytestmark = pytest.mark.real
EXAMPLE = Path(__file__).parents[3] / "contracts" / "examples" / "read_entries.py"


class Reader:
    """The example as an integrator runs it. `lines`: what all its lives printed."""

    def __init__(self, folder: Path, amqp_url: str, namespace: str) -> None:
        self.lines: list[tuple[int, str]] = []
        self._state = folder / "state.json"
        self._env = {**os.environ, "AMQP_URL": amqp_url, "STREAM": f"{namespace}.entries.log"}

    async def read(self, last: int, start: str = "first") -> None:
        """Run it until it has printed the entry `last`, then kill it."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), str(self._state), start, env=self._env, stdout=PIPE, stderr=PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            async with asyncio.timeout(60):
                while not self.lines or self.lines[-1][0] < last:
                    line = await process.stdout.readline()
                    assert line, (await process.stderr.read()).decode()
                    self._take(line)
        finally:
            process.kill()
            await process.wait()
        for line in (await process.stdout.read()).splitlines():  # said before it died
            self._take(line)

    def _take(self, line: bytes) -> None:
        log, index, leaf, _ = line.decode().split()
        if log == STUDY:  # the platform's log is in the stream, too
            self.lines.append((int(index), leaf))


async def serve(stage: Stage, bus: RabbitBus, outgoing: list[Outgoing], size: int) -> list[str]:
    """A life of the audit service in which these events come; returns the leaves of its log, of that size."""
    for one in outgoing:
        await bus.publish(one)
    app = await App.build(AuditSettings.model_validate(stage.settings("audit")))
    async with running(app), stage.client(app) as client:

        async def entries() -> list[bytes] | None:
            found = (await client.get(f"/logs/{STUDY}/entries")).content.split(b"\n")[:-1]
            return found if len(found) == size else None

        return [leaf_hash(one).hex() for one in await eventually(entries)]


async def test_the_shipped_consumer_goes_on_where_it_stopped_and_misses_none(
    tmp_path: Path, amqp_url: str, postgres_url: str, namespace: str
) -> None:
    async with real_stage(tmp_path, amqp_url, postgres_url, namespace, "audit") as (stage, bus):
        for site in stage.hospitals:
            known = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
            await bus.publish(stage.from_service("enrolment", "audit", known))
        await bus.publish(stage.from_service("enrolment", "audit", ManifestPublished(manifest=stage.manifest())))
        events = [signed(stage, line) for line in study_lines(stage)]
        reader = Reader(tmp_path, amqp_url, namespace)
        await serve(stage, bus, events[:12], 12)
        await reader.read(5)
        # The service was killed between the broker's confirms and its own note of them: what it sent comes again.
        db = await stage.database("audit")
        await db.run("forget", lambda tx: tx.execute(update(streamed_table).values(size=4)))
        await db.close()
        leaves = await serve(stage, bus, events[12:], len(events))
        await reader.read(len(events) - 1)
        # Of the reader's own death one entry may be read twice; none is left out, none is another.
        assert list(dict.fromkeys(reader.lines)) == list(enumerate(leaves))
        assert len(reader.lines) <= len(leaves) + 1
        late = Reader(tmp_path / "audit", amqp_url, namespace)
        late._state.parent.mkdir()
        await late.read(len(events) - 1, start="6")
        # An offset is taken by an entry that came twice, and by one of the platform's log.
        first = late.lines[0][0]
        assert 2 <= first <= 6
        assert late.lines == list(enumerate(leaves))[first:]
