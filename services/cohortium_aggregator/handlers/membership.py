"""Messages of enrolment and consent: who speaks for a site, who is a member, who has left."""

from cohortium_aggregator.context import Context
from cohortium_aggregator.domain.states import MemberLeft, MembershipChanged
from cohortium_aggregator.handlers.course import move
from cohortium_aggregator.handlers.senders import check_service
from cohortium_aggregator.store import sites, windows
from cohortium_aggregator.store.tables import site_keys
from cohortium_kit.consumer import Received
from cohortium_kit.db import Tx
from cohortium_kit.site_keys import SiteKey
from cohortium_messages.governance import GrantEnded, GrantRecorded, ManifestPublished, SiteRegistered, SiteRevoked
from cohortium_messages.ids import SiteId, StudyId
from cohortium_protocol.documents import verify_manifest
from cohortium_protocol.signing import site_key_id


class MembershipHandlers:
    """Keeps the keyring and the manifests, and takes leavers out of windows that are still collecting."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    async def on_site_registered(self, tx: Tx, received: Received[SiteRegistered]) -> None:
        message = check_service(received, "enrolment")
        if await site_keys.add(tx, SiteKey(message.site_id, message.name, message.identity_pk, revoked=False)):
            self._ctx.keyring.add(site_key_id(message.site_id), message.identity_pk)

    async def on_site_revoked(self, tx: Tx, received: Received[SiteRevoked]) -> None:
        message = check_service(received, "enrolment")
        await site_keys.revoke(tx, message.site_id)
        self._ctx.keyring.remove(site_key_id(message.site_id))
        await self._leave(tx, message.site_id, await windows.live_windows(tx))

    async def on_grant_recorded(self, tx: Tx, received: Received[GrantRecorded]) -> None:
        """A grant counts, perhaps again: windows may begin with the site."""
        message = check_service(received, "consent")
        said_at = received.envelope.time.timestamp()
        await sites.hear_of_grant(tx, message.study_digest, message.site_id, said_at, ended=False)

    async def on_grant_ended(self, tx: Tx, received: Received[GrantEnded]) -> None:
        """Before the survivors are fixed the site is left out; after that the protocol cannot leave it out any more.

        It is remembered: the scheduler may have bound a window with the site before it heard of this, and the window
        may come after it.
        """
        message = check_service(received, "consent")
        said_at = received.envelope.time.timestamp()
        await sites.hear_of_grant(tx, message.study_digest, message.site_id, said_at, ended=True)
        live = await windows.live_windows(tx, study_id=message.study_id)
        await self._leave(tx, message.site_id, live, message.study_digest)

    async def _leave(self, tx: Tx, site: SiteId, live: list[bytes], digest: bytes | None = None) -> None:
        for window_id in live:
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is None or site not in window.session.sites:
                continue
            if digest is None or digest == window.session.params.study_digest:
                await move(self._ctx, tx, window, MemberLeft(window.session.sites.index(site) + 1))

    async def on_manifest(self, tx: Tx, received: Received[ManifestPublished]) -> None:
        """A window that is still collecting over a site that is no member any more is given up."""
        manifest = check_service(received, "enrolment").manifest
        verify_manifest(manifest, self._ctx.governance)
        await sites.save_manifest(tx, manifest)
        newest = await sites.newest_manifest(tx, StudyId(manifest.study_id))
        if newest is None or newest.version != manifest.version:
            return
        members = {member.site_id for member in manifest.members}
        for window_id in await windows.live_windows(tx, study_id=StudyId(manifest.study_id)):
            window = await windows.find_window(tx, self._ctx.sessions, window_id)
            if window is not None and not members.issuperset(window.session.sites):
                await move(self._ctx, tx, window, MembershipChanged())
