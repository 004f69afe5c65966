"""Rules R1 to R8 as they show in the state machine, over any commands in any order."""

from hypothesis import given
from hypothesis import strategies as st

from cohortium_connector.domain.commands import (
    Abandoned,
    AbortCertified,
    AbortRequested,
    CertAccepted,
    Closed,
    Command,
    Declined,
    DiscardProduct,
    Effect,
    Expired,
    FreeProduct,
    LeaveSession,
    ReadyMade,
    RosterAccepted,
    Send,
    SessionJoined,
    SessionLost,
    Superseded,
    SurvivorsAccepted,
    UploadComplete,
    UploadStored,
    WipeSecrets,
    Withdrawn,
)
from cohortium_connector.domain.window import advance, has_left
from cohortium_connector.domain.window_states import (
    FINAL,
    TRANSITIONS,
    Echoed,
    Idle,
    InSession,
    Phase,
    Place,
    State,
    Unmasked,
)

ME = 2
SETS = {bytes([1]) * 32: (1, 2, 3), bytes([2]) * 32: (1, 3, 4), bytes([3]) * 32: (1, 2, 3, 4)}
HASHES = st.sampled_from(sorted(SETS))
OUTCOMES = st.sampled_from(["RELEASED", "CANCELLED", "PAUSED", "ABORTED", "FAILED", "FAILED_INTEGRITY"])
PLACES = st.sampled_from([bytes([7]) * 32, bytes([8]) * 32]).map(lambda digest: Place(digest, ME))
COMMANDS: st.SearchStrategy[Command] = st.one_of(
    st.builds(ReadyMade, st.just("product")),
    PLACES.map(RosterAccepted),
    PLACES.map(SessionJoined),
    st.builds(SessionLost, st.just("OUT_OF_BOUNDS"), st.integers(0, 9)),
    st.just(UploadStored(bytes([9]) * 32)),
    st.just(UploadComplete()),
    HASHES.map(lambda digest: SurvivorsAccepted(digest, SETS[digest])),
    HASHES.map(lambda digest: CertAccepted(digest, SETS[digest])),
    st.just(AbortRequested()),
    st.just(AbortCertified()),
    st.builds(Closed, OUTCOMES),
    st.just(Superseded()),
    st.builds(Declined, st.just("TRAINING_FAILED")),
    st.just(Expired()),
    st.just(Abandoned()),
    st.just(Withdrawn()),
)
FORWARD = [
    ReadyMade("product"),
    RosterAccepted(Place(bytes([7]) * 32, ME)),
    UploadStored(bytes([9]) * 32),
    UploadComplete(),
]
INTO_SESSION = [ReadyMade("product"), SessionJoined(Place(bytes([7]) * 32, ME))]
BEGINNINGS = [*(FORWARD[:length] for length in range(len(FORWARD) + 1)), INTO_SESSION]
COURSES = st.tuples(st.sampled_from(BEGINNINGS), st.lists(COMMANDS, max_size=12)).map(
    lambda drawn: [*drawn[0], *drawn[1]]
)
"""Often some way along the good course first: random commands alone seldom get there."""


def course(commands: list[Command]) -> list[tuple[State, Command, State, tuple[Effect, ...]]]:
    state: State = Idle()
    steps = []
    for command in commands:
        after, effects = advance(state, command)
        steps.append((state, command, after, effects))
        state = after
    return steps


@given(COURSES)
def test_only_the_table_s_transitions_happen(commands: list[Command]) -> None:
    for before, _, after, _ in course(commands):
        assert after.phase == before.phase or after.phase in TRANSITIONS[before.phase]


def test_the_table_knows_every_phase_and_final_ones_have_no_way_out() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert all(TRANSITIONS[phase] == () for phase in FINAL)


@given(COURSES)
def test_a_command_that_comes_twice_changes_nothing(commands: list[Command]) -> None:
    for _, command, after, _ in course(commands):
        again, effects = advance(after, command)
        assert again == after
        assert not any(isinstance(effect, FreeProduct | DiscardProduct | WipeSecrets) for effect in effects)


@given(COURSES)
def test_one_survivor_set_is_confirmed_and_no_other_is_answered(commands: list[Command]) -> None:
    confirmed = {after.survivors_hash for _, _, after, _ in course(commands) if isinstance(after, Echoed | Unmasked)}
    assert len(confirmed) <= 1
    for before, _, _, effects in course(commands):
        if Send("unmask") in effects:
            assert isinstance(before, Echoed | Unmasked)
            assert before.survivors_hash in confirmed


@given(COURSES)
def test_of_abort_vote_and_shares_only_one_ever_leaves(commands: list[Command]) -> None:
    sent = {effect.what for *_, effects in course(commands) for effect in effects if isinstance(effect, Send)}
    assert not {"unmask", "abort_vote"} <= sent


@given(COURSES)
def test_a_vector_that_left_is_free_only_with_a_certificate(commands: list[Command]) -> None:
    """R6: an exclusion by a certificate, or an abort certificate. Nobody's mere word frees it."""
    freed_by = (CertAccepted, AbortCertified)
    for before, command, after, effects in course(commands):
        if FreeProduct() in effects and has_left(before):
            assert isinstance(command, freed_by)
            assert not isinstance(command, CertAccepted) or ME not in command.members
        if after.phase is Phase.DONE:
            assert FreeProduct() not in effects


@given(COURSES)
def test_a_vector_s_fate_is_decided_once_and_the_secrets_go_at_the_end(commands: list[Command]) -> None:
    steps = course(commands)
    fates = [effect for *_, effects in steps for effect in effects if isinstance(effect, FreeProduct | DiscardProduct)]
    assert len(fates) <= 1 or steps[-1][2].phase is Phase.SPENT
    for before, _, after, effects in steps:
        assert (WipeSecrets() in effects) == (after.phase in FINAL and before.phase not in FINAL)


@given(COURSES)
def test_only_one_upload_is_ever_sent(commands: list[Command]) -> None:
    assert sum(effects.count(Send("upload")) for *_, effects in course(commands)) <= 1


@given(COURSES)
def test_a_session_ends_by_its_closing_or_by_leaving_it_which_is_said_once(commands: list[Command]) -> None:
    for before, command, after, effects in course(commands):
        said = [effect for effect in effects if isinstance(effect, LeaveSession)]
        ends = isinstance(before, InSession) and after.phase in FINAL
        assert len(said) == (1 if ends and not isinstance(command, Closed) else 0)
        assert not (ends and isinstance(command, Superseded)), "a newer window waits for the session's end"


@given(COURSES)
def test_what_was_in_a_session_is_never_used_again(commands: list[Command]) -> None:
    """Its words may have left at any moment since the roster."""
    for before, _, after, effects in course(commands):
        if isinstance(before, InSession):
            assert after.phase in (Phase.IN_SESSION, Phase.DONE, Phase.SPENT)
            assert FreeProduct() not in effects
            assert (DiscardProduct() in effects) == (after.phase in FINAL)
            assert not any(isinstance(effect, Send) for effect in effects)
