"""How a log grows, and who may say what in which one."""

import json
from dataclasses import replace

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from cohortium_audit.domain import (
    PLATFORM,
    EmitterRefused,
    check_emitter,
    grow,
    leaf_data,
    log_of,
    nodes_to_grow,
)
from cohortium_kit.testing.clock import START
from cohortium_messages import events as ev
from cohortium_messages.emitters import EMITTERS
from cohortium_messages.envelope import Envelope
from cohortium_messages.ids import StudyId
from cohortium_messages.registry import released_types
from cohortium_protocol.translog import Node, Tree
from governance_stage import DIGEST, STUDY, Stage
from study_story import RUN, study_lines

REFERENCE = [
    bytes.fromhex(text)
    for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
]


def envelope(message: ev.AuditEvent, study: str | None = STUDY) -> Envelope:
    return Envelope(
        id="event-0001",
        source="/test",
        type=message.type_name,
        time=START,
        study=None if study is None else StudyId(study),
        data=message.model_dump(mode="json"),
    )


def test_growing_gives_the_reference_root_of_certificate_transparency() -> None:
    growth = grow(0, {}, REFERENCE)
    stored = dict(growth.nodes)
    root = Tree(growth.size, stored.__getitem__, stored.__setitem__).root()
    assert root.hex() == "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"


@given(st.lists(st.lists(st.binary(max_size=8), min_size=1, max_size=9), max_size=8))
def test_batches_of_any_size_grow_the_same_log(batches: list[list[bytes]]) -> None:
    stored: dict[Node, bytes] = {}
    size = 0
    for batch in batches:
        known = {node: stored[node] for node in nodes_to_grow(size)}
        growth = grow(size, known, batch)
        assert not stored.keys() & dict(growth.nodes).keys()
        assert (growth.first, growth.size) == (size, size + len(batch))
        stored |= dict(growth.nodes)
        size = growth.size
    whole = grow(0, {}, [data for batch in batches for data in batch])
    assert stored == dict(whole.nodes)


def test_every_event_type_has_an_emitter() -> None:
    every = {kind for kind in released_types().values() if issubclass(kind, ev.AuditEvent)}
    assert set(EMITTERS) == every


def test_a_leaf_is_the_canonical_json_of_envelope_key_and_signature(stage: Stage) -> None:
    body = rfc8785.dumps({"b": 1, "a": "é"})
    data = leaf_data(body, "service:audit", b"\1" * 64)
    assert json.loads(data) == {"event": {"a": "é", "b": 1}, "key_id": "service:audit", "signature": "01" * 64}
    assert rfc8785.dumps(json.loads(data)) == data
    assert body in data


@pytest.mark.parametrize("body", [b'{"b": 1}', b'{"b":1,"a":2}', b'{"a":1.0}', b'{"a":1,"a":1}', b'{"a":1e400}'])
def test_a_body_that_is_not_canonical_could_not_be_verified_later_and_is_refused(body: bytes) -> None:
    with pytest.raises(EmitterRefused, match="NOT_CANONICAL"):
        leaf_data(body, "service:audit", b"\1" * 64)


def test_an_event_without_a_study_goes_to_the_platforms_log() -> None:
    message = ev.SiteRevocation(site_id="00000000-0000-4000-8000-000000000001", reason="SITE_REVOKED")
    assert log_of(envelope(message, None)) == PLATFORM
    assert log_of(envelope(message)) == STUDY


def test_honest_parties_may_say_all_that_they_say(stage: Stage) -> None:
    members = frozenset(site.site_id for site in stage.hospitals)
    for line in study_lines(stage):
        key_id = f"service:{line.who}" if isinstance(line.who, str) else f"site:{line.who.site_id}"
        check_emitter(key_id, line.message, envelope(line.message), members)


def test_a_site_speaks_only_of_itself_and_only_in_its_studies(stage: Stage) -> None:
    site, other = stage.hospitals[:2]
    members = frozenset({site.site_id})
    own = ev.SharesGiven(run_id=RUN, window_id=b"\1" * 16, site_id=site.site_id, survivors_hash=DIGEST)
    of_other = own.model_copy(update={"site_id": other.site_id})
    fault = ev.FaultSeen(key_id="service:scheduler", code="BAD_SCHEDULER_SIGNATURE")
    key_id = f"site:{site.site_id}"
    check_emitter(key_id, own, envelope(own), members)
    check_emitter(key_id, fault, envelope(fault, None), frozenset())
    for message, study, sites, code in [
        (of_other, STUDY, members, "SITE_ID_MISMATCH"),
        (own, None, members, "STUDY_MISSING"),
        (own, STUDY, frozenset({other.site_id}), "NOT_A_MEMBER"),
    ]:
        with pytest.raises(EmitterRefused, match=code):
            check_emitter(key_id, message, envelope(message, study), sites)


def test_nobody_says_what_is_anothers_to_say(stage: Stage) -> None:
    members = frozenset(site.site_id for site in stage.hospitals)
    for line in study_lines(stage):
        for role in ("enrolment", "consent", "scheduler", "aggregator", "audit"):
            if role not in EMITTERS[type(line.message)]:
                with pytest.raises(EmitterRefused, match="EVENT_NOT_ALLOWED"):
                    check_emitter(f"service:{role}", line.message, envelope(line.message), members)


def test_a_time_without_a_zone_is_refused(stage: Stage) -> None:
    line = next(line for line in study_lines(stage) if isinstance(line.message, ev.GrantStarted))
    naive = line.message.model_copy(update={"not_after": START.replace(tzinfo=None)})
    with pytest.raises(EmitterRefused, match="TIME_WITHOUT_ZONE"):
        check_emitter("service:consent", naive, envelope(line.message), frozenset())
    assert replace(line, message=naive) != line
