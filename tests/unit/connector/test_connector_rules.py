"""The pure parts: work, policy, settings, files."""

import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from cohortium_connector.__main__ import main
from cohortium_connector.domain.policy import HeldGrant, differs_by_one, usable_grant
from cohortium_connector.domain.window import left_out
from cohortium_connector.domain.window_states import (
    AbortVoted,
    Echoed,
    Place,
    RosterOk,
    State,
    Unmasked,
    Uploaded,
    UploadSaved,
)
from cohortium_connector.domain.work import (
    DoJob,
    Job,
    Product,
    ProductState,
    UseProduct,
    next_work,
    staleness,
    still_wanted,
)
from cohortium_connector.local_log import LIMIT_BYTES, LocalLog
from cohortium_connector.settings import ConnectorSettings
from cohortium_connector.spool import Spool, write_synced
from cohortium_kit.errors import ConfigurationError
from cohortium_kit.testing.clock import ManualClock
from cohortium_messages.governance import SiteGrant
from cohortium_messages.ids import RunId, SiteId, StudyId
from cohortium_messages.secure_sum import ModelRef, NoiseSpec, VectorSpec, WindowParams
from cohortium_messages.study import Deadlines

NOW = datetime(2026, 1, 1, tzinfo=UTC)
RUN = RunId("11111111-1111-4111-8111-111111111111")
SITE = SiteId("22222222-2222-4222-8222-222222222222")


def ref(version: int) -> ModelRef:
    return ModelRef(version=version, model_hash=bytes([version]) * 32)


def params(*versions: int, purpose: Any = "update") -> WindowParams:
    vector = VectorSpec(
        encoding="integer",
        dimension=7,
        ring_bits=64,
        rotate=False,
        rotation_seed=bytes(32),
        keep=1.0,
        keep_seed=bytes(32),
        clip_norm_l2=1.0,
        range_factor=1.0,
        weight_cap=1,
        chunk_bytes=2048,
    )
    return WindowParams(
        study_id=StudyId("heart"),
        study_digest=bytes(32),
        run_id=RUN,
        window_id=bytes(16),
        purpose=purpose,
        kind="buffered",
        round=1,
        manifest_hash=bytes(32),
        bases=tuple(ref(version) for version in versions),
        max_staleness=5,
        vector=vector,
        privacy_mode="none",
        target_cohort=3,
        least_cohort=3,
        deadlines=Deadlines(),
        aggregator_seal_pk=bytes(32),
    )


def product(version: int | None, *, purpose: Any = "update") -> Product:
    base = None if version is None else ref(version)
    return Product("p", RUN, purpose, base, 10, ProductState.FREE)


# Work


def test_a_finished_update_is_used_while_its_base_is_allowed() -> None:
    assert next_work(params(3, 4, 5), (product(3),)) == UseProduct(product(3))
    assert staleness(params(3, 4, 5), ref(3)) == 2
    assert staleness(params(3, 4, 5), ref(5)) == 0


def test_an_update_whose_base_is_gone_is_stale_and_the_newest_base_is_trained_on() -> None:
    assert next_work(params(4, 6, 5), (product(3),)) == DoJob(Job(RUN, "update", ref(6)), (product(3),))


def test_a_reserved_vector_and_one_of_another_purpose_or_run_do_not_count() -> None:
    other = replace(product(3), run_id=RunId("33333333-3333-4333-8333-333333333333"))
    reserved = replace(product(3), state=ProductState.RESERVED)
    found = next_work(params(3), (other, reserved, product(3, purpose="evaluation")))
    assert found == DoJob(Job(RUN, "update", ref(3)))


def test_statistics_need_no_base() -> None:
    statistics = params(purpose="statistics")
    assert next_work(statistics, ()) == DoJob(Job(RUN, "statistics", None))
    made = product(None, purpose="statistics")
    assert next_work(statistics, (made,)) == UseProduct(made)
    assert staleness(statistics, None) == 0


def test_a_vector_with_other_noise_than_the_window_asks_for_is_not_used() -> None:
    noise = NoiseSpec(multiplier=1, sampling_rate=1, clip=1, step=0.1, site_sigma=20)
    less = noise.model_copy(update={"site_sigma": 10})
    made, asked = replace(product(3), noise=noise), params(3).model_copy(update={"noise": noise})
    assert next_work(asked, (made,)) == UseProduct(made)
    for other in (less, None):
        wants = params(3).model_copy(update={"noise": other})
        assert next_work(wants, (made,)) == DoJob(Job(RUN, "update", ref(3)), (made,))
    assert next_work(asked, (product(3),)) == DoJob(Job(RUN, "update", ref(3)), (product(3),))


PLACE = Place(bytes(32), 2)
LEFT, SET, OTHER_SET = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32


@pytest.mark.parametrize(
    ("state", "freed"),
    [
        (RosterOk("p", PLACE), False),
        (UploadSaved("p", PLACE, LEFT), True),
        (Uploaded("p", PLACE, LEFT), True),
        (Echoed("p", PLACE, LEFT, SET, (1, 3)), True),
        (Echoed("p", PLACE, LEFT, OTHER_SET, (1, 2, 3)), True),
        (Echoed("p", PLACE, None, SET, (1, 3)), False),
        (Unmasked("p", PLACE, LEFT, SET, (1, 3)), True),
        (Unmasked("p", PLACE, LEFT, OTHER_SET, (1, 2, 3)), False),
        (AbortVoted("p", PLACE, LEFT), True),
        (AbortVoted("p", PLACE, None), False),
    ],
)
def test_when_a_certified_set_without_this_site_frees_what_left(state: State, freed: bool) -> None:
    assert left_out(state, SET, (1, 3)) is freed
    assert not left_out(state, SET, (1, 2, 3))


def test_a_running_job_is_wanted_while_its_base_is_allowed() -> None:
    assert still_wanted(Job(RUN, "update", ref(3)), params(3, 4))
    assert not still_wanted(Job(RUN, "update", ref(2)), params(3, 4))
    assert not still_wanted(Job(RUN, "evaluation", ref(3)), params(3, 4))


# Grants and cohorts


def grant(*, begins: int = -1, ends: int = 1, rounds: int = 10, withdrawn: bool = False) -> HeldGrant:
    document = SiteGrant(
        study_id=StudyId("heart"),
        study_digest=bytes(32),
        site_id=SITE,
        not_before=NOW + timedelta(days=begins),
        not_after=NOW + timedelta(days=ends),
        max_rounds=rounds,
        approvers=("Dr Grant",),
        sig=bytes(64),
    )
    return HeldGrant(document, bytes(32), withdrawn)


@pytest.mark.parametrize(
    ("held", "code"),
    [
        ((), "GRANT_NOT_FOUND"),
        ((grant(begins=1, ends=2),), "GRANT_NOT_YET_VALID"),
        ((grant(ends=0),), "GRANT_EXPIRED"),
        ((grant(rounds=4),), "GRANT_ROUNDS_SPENT"),
        ((grant(withdrawn=True),), "GRANT_WITHDRAWN"),
        ((grant(withdrawn=True), grant(ends=-1, begins=-2)), "GRANT_WITHDRAWN"),
    ],
)
def test_why_there_is_no_grant(held: tuple[HeldGrant, ...], code: str) -> None:
    assert usable_grant(held, 5, NOW) == code


def test_a_later_grant_takes_the_place_of_a_withdrawn_one() -> None:
    good = grant(ends=2)
    assert usable_grant((grant(withdrawn=True), good), 5, NOW) == good


def test_cohorts_that_differ_by_one_site_are_seen() -> None:
    a, b, c, d = (SiteId(name) for name in "abcd")
    assert differs_by_one(frozenset({a, b, c}), [frozenset({a, b, c, d})])
    assert differs_by_one(frozenset({a, b, c, d}), [frozenset({a, b}), frozenset({a, b, c})])
    assert not differs_by_one(frozenset({a, b, c}), [frozenset({a, b, c}), frozenset({a, b, d})])


# Settings and files


def settings(tmp_path: Path, **changes: Any) -> ConnectorSettings:
    values = {
        "amqp_url": "memory://",
        "spool_dir": str(tmp_path / "spool"),
        "governance_keys": ["aa" * 32, "bb" * 32],
        "governance_threshold": 2,
    }
    return ConnectorSettings.model_validate({**values, **changes})


def test_the_spool_is_the_database(tmp_path: Path) -> None:
    assert settings(tmp_path).database_url == f"sqlite:///{tmp_path}/spool/spool.db"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"http_port": 80}, "listens on no port"),
        ({"database_url": "postgresql://x/y"}, "cannot be set"),
        ({"governance_threshold": 3}, "larger than the number"),
        ({"unknown": 1}, "Extra inputs"),
        ({"policy": {"min_cohort": 2}}, "greater than or equal to 3"),
        ({"policy": {"approved_studies": ["heart"]}}, "pattern"),
    ],
)
def test_settings_that_make_no_sense_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settings(tmp_path, **changes)


def test_a_table_is_bound_by_name_or_for_all(tmp_path: Path) -> None:
    both = settings(tmp_path, datasets={"heart": {"path": "/a.csv"}, "*": {"path": "/b.csv"}})
    assert [both.dataset(name).path for name in ("heart", "kidney")] == ["/a.csv", "/b.csv"]  # type: ignore[union-attr]
    assert settings(tmp_path).dataset("heart") is None


def test_the_local_log_is_private_and_bounded(tmp_path: Path) -> None:
    path = tmp_path / "training.log"
    log = LocalLog(path, ManualClock())
    log.say("row 17 of age is out of range")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text().endswith("row 17 of age is out of range\n")
    path.write_bytes(b"x" * (LIMIT_BYTES + 1))
    log.say("new")
    assert path.stat().st_size < 100
    assert (tmp_path / "training.log.1").stat().st_size > LIMIT_BYTES


def test_a_spool_has_one_connector(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    with spool.only_here(), pytest.raises(ConfigurationError), Spool(tmp_path).only_here():
        pass


def test_files_without_a_record_are_swept_but_not_those_that_are_being_made(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.prepare()
    kept, made, rubbish = (spool.product(name) for name in ("kept", "made", "rubbish"))
    for path in (kept, made, rubbish):
        path.touch()
    (spool.uploads / "x.part").touch()
    with spool.pinned(made):
        candidates = spool.sweepable()
    later = spool.product("later")
    later.touch()
    assert spool.sweep(candidates, frozenset({kept.with_suffix("")})) == 1
    assert {path.name for path in spool.products.iterdir()} == {"kept.vector", "made.vector", "later.vector"}


def test_the_count_of_promises_lasts_and_an_older_file_of_it_is_read(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    assert spool.read_generation() == 0
    write_synced(tmp_path / "generation", b"7\n")  # as earlier versions wrote it
    assert spool.read_generation() == 7
    for generation in (8, 9, 123):
        spool.write_generation(generation)
        assert Spool(tmp_path).read_generation() == generation
    assert list(tmp_path.iterdir()) == [tmp_path / "generation"]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    write_synced(tmp_path / "generation", b"1")
    write_synced(tmp_path / "generation", b"22")
    assert (tmp_path / "generation").read_bytes() == b"22"
    assert list(tmp_path.iterdir()) == [tmp_path / "generation"]


def test_the_command_line_checks_a_settings_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cohortium_connector.__main__.configure_logging", lambda **_: None)
    path = tmp_path / "connector.yaml"
    path.write_text(yaml.safe_dump({"amqp_url": "amqp://x", "spool_dir": str(tmp_path), "governance_threshold": 1}))
    assert main(["check-config", "--config", str(path)]) == 2
    assert "governance_keys: missing" in capsys.readouterr().err
    whole = settings(tmp_path).model_dump(mode="json", exclude={"database_url", "db_schema"}, exclude_none=True)
    path.write_text(yaml.safe_dump(whole))
    assert main(["check-config", "--config", str(path)]) == 0
    assert main(["migrate", "--config", str(path)]) == 0
    assert main(["run", "--config", str(path)]) == 2
    assert "invitation_file" in capsys.readouterr().err
