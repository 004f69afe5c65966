"""A consent service on an SQLite file, with everybody else played by the test."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cohortium_consent.app import App
from cohortium_consent.settings import ConsentSettings
from cohortium_messages.governance import ManifestPublished, SiteRegistered
from governance_stage import STUDY, Stage, hear


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage.at(tmp_path)


@pytest.fixture
async def consent(stage: Stage) -> AsyncIterator[App]:
    settings = ConsentSettings.model_validate(stage.settings("consent"))
    db = await stage.database("consent")
    app = await App.build(settings, bus=await stage.bus(), database=db, clock=stage.clock)
    yield app
    await db.close()


@pytest.fixture
async def members(stage: Stage, consent: App) -> None:
    """Four enrolled members of the study, by enrolment's word."""
    for site in stage.hospitals:
        message = SiteRegistered(site_id=site.site_id, name=site.name, identity_pk=site.key.public)
        await hear(consent, "consent", stage.from_service("enrolment", "consent", message))
    published = ManifestPublished(manifest=stage.manifest())
    await hear(consent, "consent", stage.from_service("enrolment", "consent", published, study=STUDY))
