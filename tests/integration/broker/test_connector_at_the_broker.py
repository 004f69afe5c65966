"""The whole way of a hospital: invited, registered, its login renewed while it works, and cut off. Nobody delivers a
password to it."""

from pathlib import Path

import pytest
import yaml
from broker_world import NAMESPACE, GuardedWorld

from cohortium_cli.federation import ConnectorSpec, create_connector
from cohortium_connector.app import App
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.store import site as site_store
from cohortium_enrolment import store
from cohortium_enrolment.domain.sites import Active
from cohortium_messages.events import BrokerRefusal
from cohortium_messages.governance import Invitation
from cohortium_messages.rights import Standing
from governance_stage import eventually, running

pytestmark = [pytest.mark.real, pytest.mark.timeout(300)]


async def connector(world: GuardedWorld, folder: Path, invitation: Invitation) -> App:
    spec = ConnectorSpec(folder, invitation, world.broker.url(), NAMESPACE, {}, broker_check="strict")
    settings = ConnectorSettings.model_validate(
        {**yaml.safe_load(create_connector(spec).read_text()), "credential_s": 10, "presence_s": 0.2}
    )
    assert "@" not in settings.amqp_url, "a hospital's settings hold no login"
    return await App.build(settings)


async def test_a_hospital_comes_in_with_its_token_goes_on_with_its_key_and_is_cut_off(
    guarded: GuardedWorld, tmp_path: Path
) -> None:
    invitation = await guarded.invitation("Cleveland")
    site_id = invitation.site_id
    app = await connector(guarded, tmp_path / "hospital", invitation)
    async with running(app):

        async def registered() -> bool:
            async with app.db.reading("test") as tx:
                record = await site_store.find_site(tx)
            return record is not None and record.registered

        await eventually(registered, timeout_s=120)

        async def renewed() -> bool:
            async with guarded.db.reading("test") as tx:
                site, passes = await store.site(tx, site_id), await store.passes(tx, site_id)
            assert isinstance(site, Active)
            return sum(one.standing is Standing.ACTIVE for one in passes) >= 3

        await eventually(renewed, timeout_s=120)
        assert app._bus.connected
        told = {one.code for one in await guarded.recorded(BrokerRefusal) if isinstance(one, BrokerRefusal)}
        # Before it was registered it tried queues and keys of members. Exchanges it never looks at, only writes.
        assert "EXCHANGE_FORBIDDEN" not in told
        await guarded.revoke(site_id)

        async def off() -> bool:
            return not app._bus.connected

        await eventually(off, timeout_s=120)
