"""Consent documents with the hospital's own program, without a broker or an operator."""

from pathlib import Path

import pytest
import yaml
from cohortium_hospital import __main__ as hospital
from connector_world import World

from cohortium_connector.app import open_site
from cohortium_kit.clock import SystemClock
from cohortium_messages.consent import ConsentFile, Record
from cohortium_protocol.consent.signing import record_digest
from consent_stage import Plane


@pytest.fixture
async def joined(tmp_path: Path) -> tuple[Path, Plane]:
    """The settings of a connector that has joined, and everybody's keys."""
    world = World(tmp_path)
    settings = world.settings()
    values = {
        "amqp_url": "amqp://localhost:1/",
        "broker_check": "trial",
        "spool_dir": str(tmp_path / "spool"),
        "invitation_file": str(tmp_path / "invitation.json"),
        "governance_keys": [key.public.hex() for key in world.officers],
        "governance_threshold": 2,
        "datasets": {},
    }
    config = tmp_path / "connector.yaml"
    config.write_text(yaml.safe_dump(values), encoding="utf-8")
    config.chmod(0o600)
    desk, db = await open_site(settings, SystemClock())
    await db.close()
    keys = {world.site_id: desk.identity.key}
    return config, Plane(now=world.clock.now(), officers=tuple(world.officers), site_keys=keys)


def run(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    code = hospital.main([str(word) for word in words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_people_documents_and_signatures(
    joined: tuple[Path, Plane], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, plane = joined
    (site,) = plane.site_keys
    people = (plane.admin(site), *plane.approvers(site))
    bare = tuple(plane.card(one).model_copy(update={"signatures": ()}) for one in people)
    file, terms = tmp_path / "terms.json", plane.terms(site)
    file.write_text(ConsentFile(people=bare, records=(Record(document=terms),)).model_dump_json())
    code, said = run(capsys, "consent-add", file, "-c", config)
    assert (code, "vouch" in said or "signed by the hospital" in said) == (2, True)
    assert run(capsys, "consent-vouch", file, "-c", config)[0] == 0
    for person, deed in zip(people, ("submit", "approve", "approve"), strict=True):
        key = tmp_path / f"{person.name}.key"
        key.write_text(person.key.to_seed().hex())
        key.chmod(0o600)
        assert run(capsys, "consent-key", key, "-c", config) == (0, f"{person.key.public.hex()}\n")
        assert (
            run(capsys, "consent-sign", file, "--deed", deed, "--name", person.name, "--key", key, "-c", config)[0] == 0
        )
    assert run(capsys, "consent-add", file, "-c", config) == (0, f"{file}: 4 of its parts were new\n")
    code, said = run(capsys, "consent-list", "-c", config)
    assert (code, "data-use terms T-1  active" in said) == (0, True)
    copy, digest = tmp_path / "copy.json", record_digest(terms).hex()
    assert run(capsys, "consent-get", digest[:10], copy, "-c", config)[0] == 0
    assert len(ConsentFile.model_validate_json(copy.read_text()).records[0].acts) == 3
    # One person stops it.
    key = tmp_path / f"{people[2].name}.key"
    words = ("--deed", "terminate", "--name", people[2].name, "--key", key, "-c", config)
    assert run(capsys, "consent-sign", copy, *words)[0] == 0
    assert run(capsys, "consent-add", copy, "-c", config)[0] == 0
    assert "data-use terms T-1  terminated" in run(capsys, "consent-list", "-c", config)[1]


def test_mistakes_have_a_way_out(
    joined: tuple[Path, Plane], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, _ = joined
    broken = tmp_path / "broken.json"
    broken.write_text('{"records": [{"document": {"kind": "terms"}}]}')
    code, said = run(capsys, "consent-add", broken, "-c", config)
    assert (code, "records.0.document.terms.number" in said) == (2, True)
    code, said = run(capsys, "consent-get", "ab", tmp_path / "x.json", "-c", config)
    assert (code, "consent-list shows" in said) == (2, True)
    code, said = run(capsys, "consent-check", "heart", "-c", config)
    assert (code, "no offer 'heart'" in said) == (1, True)
    sign = ("consent-sign", broken, "--deed", "approve", "--name", "A", "--key", tmp_path / "none.key", "-c", config)
    code, said = run(capsys, *sign)
    assert (code, "consent-key" in said) == (2, True)
