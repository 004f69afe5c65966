"""A thousand hospitals, twenty at a time: the scheduler's choice and the whole protocol, until each was in a sum.

Lean sites: keys and the protocol's functions, without a connector around them. The same with every service and
connector in place is `python -m cohortium_sim.storm.scale --sites 1000`.
"""

import hashlib
from collections import Counter
from uuid import UUID

import numpy as np
import pytest
from federation_in_memory import MODEL_7, Federation, Site, integer_spec, manifest_of, params_of

from cohortium_kit.testing.clock import START
from cohortium_messages.governance import Manifest, Permit
from cohortium_messages.ids import RunId, SiteId
from cohortium_protocol import window
from cohortium_protocol.keys import WindowKeys
from cohortium_protocol.signing import IdentityKey
from cohortium_scheduler.choosing import ask, with_turns
from cohortium_scheduler.domain.windows import Planned, Window
from cohortium_scheduler.store import Run
from cohortium_sim.storm.operations import Scenario
from cohortium_sim.storm.study import study_of

SITES, COHORT, COLLUDING, NUMBERS = 1000, 20, 6, 8


def value(site: Site, round_: int) -> np.ndarray:
    """What a site contributes: any two sites, and any two rounds, differ."""
    seed = hashlib.sha256(f"{site.site_id} {round_}".encode()).digest()
    return np.frombuffer(seed, dtype=np.uint32)[:NUMBERS].astype(np.int64) >> 8


def secure_sum(members: list[Site], manifest: Manifest, round_: int) -> np.ndarray:
    """Through every step of SA/1; the last site is never heard of again once its upload is there."""
    spec = integer_spec(NUMBERS)
    params = params_of(manifest, spec, window_id=round_.to_bytes(16, "big"), round=round_)
    readies = [window.make_ready(params, one.site_id, MODEL_7, one.keys, one.identity) for one in members]
    roster = window.make_roster(params, manifest, readies)
    views = [window.verify_roster(roster, params, manifest, ready) for ready in readies]
    federation = Federation(tuple(members), manifest, params, tuple(readies), views[0])
    for index in views[0].indices:
        federation.send_integers(index, value(federation.site(index), round_))
    frozen, headers = federation.freeze(views[0].indices)
    there = list(views[0].indices)[:-1]
    certificate = federation.certificate(frozen, there)
    answers = [federation.unmask(index, frozen, certificate) for index in there[: views[0].t]]
    (words,) = federation.open(frozen, headers, answers)
    return words[:NUMBERS].astype(np.int64)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_each_of_a_thousand_sites_is_in_a_sum() -> None:
    everyone = [
        Site(SiteId(str(UUID(int=number))), IdentityKey.generate(), WindowKeys.generate())
        for number in range(1, SITES + 1)
    ]
    by_id = {site.site_id: site for site in everyone}
    manifest = manifest_of(everyone, COLLUDING)
    study = study_of(Scenario(0, SITES, "synchronous", SITES // COHORT, 16, False, (), COHORT))
    run = Run(RunId(str(UUID(int=7))), study, bytes(32), "TRAINING", "", created_at=START)
    permits = tuple(Permit(site_id=site, permitted=True) for site in by_id)
    counted: Counter[SiteId] = Counter()
    for round_ in range(1, SITES // COHORT + 1):
        planned = Window(bytes(16), run.run_id, round_, "update", round_, 1, Planned(bytes(16), START))
        asking = ask(run, planned, permits, by_id, COLLUDING + 2)
        run = with_turns(run, asking.choices)
        cohort = [
            Site(site.site_id, site.identity, WindowKeys.generate())
            for site in (by_id[permit.site_id] for permit in asking.permits)
        ]
        opened = secure_sum(cohort, manifest, round_)
        assert np.array_equal(opened, sum(value(site, round_) for site in cohort))
        counted.update(site.site_id for site in cohort)
    assert counted == dict.fromkeys(by_id, 1)
