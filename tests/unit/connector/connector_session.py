"""One window as the platform sees it, played by a test that may be honest or not."""

from collections.abc import Iterable, Sequence

from connector_peers import Peer
from connector_world import World

from cohortium_messages.governance import Manifest
from cohortium_messages.secure_sum import (
    AbortAsked,
    AbortCert,
    AbortVote,
    Echo,
    EchoCert,
    ModelRef,
    Ready,
    Receipt,
    Roster,
    Survivors,
    Unmask,
    UploadHeader,
    WindowClosed,
    WindowParams,
)
from cohortium_protocol.codec import codec_for
from cohortium_protocol.opening import (
    check_unmask,
    freeze_survivors,
    make_abort_cert,
    make_echo_cert,
    make_survivors,
)
from cohortium_protocol.survivors import SurvivorSet
from cohortium_protocol.window import NO_BASE, RosterView, make_roster, view_roster


class Session:
    """One window as the platform sees it, over the connector and the peers."""

    def __init__(self, world: World, params: WindowParams, manifest: Manifest) -> None:
        self.world = world
        self.params = params
        self.manifest = manifest
        self.headers: dict[int, UploadHeader] = {}
        self.roster: Roster
        self.view: RosterView
        self.survivors: SurvivorSet

    @property
    def me(self) -> int:
        return self.view.index_of(self.world.site_id)

    @property
    def base(self) -> bytes:
        return self.params.bases[-1].model_hash if self.params.bases else NO_BASE

    async def fix_roster(self, peers: Sequence[Peer] | None = None) -> Roster:
        """Wait for the connector's `Ready`, and show the roster to it."""
        ready = await self.world.expect(Ready)
        while ready.window_id != self.params.window_id:
            ready = await self.world.expect(Ready)
        chosen = self.world.peers if peers is None else peers
        readies = [peer.ready(self.params, self.base) for peer in chosen]
        self.roster = make_roster(self.params, self.manifest, [ready, *readies])
        self.view = view_roster(self.roster, self.params, self.manifest)
        await self.world.say("aggregator", self.roster)
        return self.roster

    async def collect(self, *, without: Sequence[Peer] = ()) -> UploadHeader:
        """The connector's header and the peers'; all chunks are awaited, then the receipt says so."""
        header = await self.world.expect(UploadHeader)
        self.headers[header.index] = header
        for peer in self.world.peers:
            if peer not in without and any(entry.site_id == peer.site_id for entry in self.roster.entries):
                uploaded = peer.upload(self.view, self.params.vector, 1)
                self.headers[uploaded.index] = uploaded
        return header

    async def receipt(self) -> None:
        plan = codec_for(self.params.vector, self.view.n).plan
        await self.world.until(lambda: len(self.world.chunks(self.params.window_id)) >= plan.chunk_count)
        await self.world.say("aggregator", self.receipt_for(range(plan.chunk_count)))

    def receipt_for(self, chunks: Iterable[int], *, header_stored: bool = True) -> Receipt:
        """A receipt that names these chunks."""
        count = codec_for(self.params.vector, self.view.n).plan.chunk_count
        stored = sum(1 << chunk for chunk in chunks)
        return Receipt(
            window_id=self.params.window_id,
            step=0,
            header_stored=header_stored,
            chunks_stored=stored.to_bytes(-(-count // 8), "little"),
            complete=header_stored and stored == (1 << count) - 1,
        )

    def show(self, headers: dict[int, UploadHeader] | None = None) -> Survivors:
        """The honest survivors message to the connector for these headers."""
        shown = self.headers if headers is None else headers
        self.survivors = freeze_survivors(self.view, 0, shown)
        return make_survivors(self.view, self.survivors, shown, self.me)

    def others(self, shown: dict[int, UploadHeader] | None = None) -> list[Echo]:
        """The peers' echoes of the frozen set."""
        headers = self.headers if shown is None else shown
        return [
            peer.echo(self.view, make_survivors(self.view, self.survivors, headers, self.view.index_of(peer.site_id)))
            for peer in self.world.peers
            if any(entry.site_id == peer.site_id for entry in self.roster.entries)
        ]

    def certify(self, echoes: Sequence[Echo]) -> EchoCert:
        return make_echo_cert(self.view, self.survivors, echoes)

    async def close(self, state: str = "RELEASED", *, model: ModelRef | None = None) -> None:
        await self.world.say(
            "aggregator",
            WindowClosed(
                window_id=self.params.window_id,
                step=0,
                state=state,  # type: ignore[arg-type]
                reason="",
                survivors_hash=self.survivors.digest if hasattr(self, "survivors") else None,
                model=model,
            ),
        )

    async def up_to_upload(self) -> "Session":
        """Opened, ready, roster, uploaded, received."""
        await self.world.open(self.params)
        await self.fix_roster()
        await self.collect()
        await self.receipt()
        await self.world.reaches(self.params.window_id, "UPLOADED")
        return self

    async def up_to_echo(self) -> Echo:
        await self.up_to_upload()
        await self.world.say("aggregator", self.show())
        return await self.world.expect(Echo)

    async def up_to_unmask(self) -> Unmask:
        echo = await self.up_to_echo()
        await self.world.say("aggregator", self.certify([echo, *self.others()]))
        return await self.world.expect(Unmask)

    async def ask_abort(self) -> None:
        await self.world.say(
            "aggregator", AbortAsked(window_id=self.params.window_id, step=0, reason="NOT_ENOUGH_UPLOADS")
        )

    def abort_cert(self, votes: Sequence[AbortVote]) -> AbortCert:
        return make_abort_cert(self.view, 0, votes)

    def never_both(self) -> None:
        """Over everything that left: of no site both the share of its self seed and one of a pair seed toward it."""
        answers = [sent for sent in self.world.all(Unmask) if sent.window_id == self.params.window_id]
        assert len({(answer.survivors_hash, answer.sealed) for answer in answers}) <= 1, "two answers for one window"
        for answer in answers:
            shares = check_unmask(self.view, self.survivors, answer, self.world.seal)
            opened, removed = set(shares.own), {absent for _, absent in shares.pairs}
            assert not opened & removed
            assert opened == set(self.survivors.members)
            assert {dealer for dealer, _ in shares.pairs} <= opened
