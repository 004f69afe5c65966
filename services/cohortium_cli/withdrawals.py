"""`cohortium consent withdrawals`, `decide`, `receipt`, `verify-receipt`: from a withdrawal to its proof."""

import re
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from pydantic import ValidationError

from cohortium_cli.consent import consent_app
from cohortium_cli.operator import Operator, OperatorError
from cohortium_cli.options import OPERATOR_DEFAULT, Json, OperatorFile
from cohortium_cli.output import USAGE, done, fail, friendly, print_json, read_text, say, show, table
from cohortium_cli.runs import ask
from cohortium_messages.consent import ConsentFile, Effect, Record, WithdrawalEffect
from cohortium_protocol.consent.promises import is_weaker
from cohortium_protocol.consent.signing import record_digest
from cohortium_protocol.documents import GovernancePin
from cohortium_protocol.receipts import Receipt, ReceiptFile, ReceiptRefused, verify_receipt

LEAST_SIGNATURES = 2
DIFFERS_BY_ONE = "COHORT_DIFFERS_BY_ONE"
ONE_LEFT = (
    "Where exactly one hospital left, the others refuse to train again without it ("
    f"{DIFFERS_BY_ONE}): their old sum less their new one would be its part. A study whose sums have noise is not "
    "concerned. Otherwise each of them accepts it, by `policy: {refuse_cohort_differing_by_one: false}` in its "
    "connector.yaml and a restart; or you wait until another hospital has joined or left; or you decide `retire` or "
    "`stop_future`."
)
"""What officers should know before they decide `retrain`, and the ways out."""
WithdrawalName = Annotated[
    str, typer.Argument(help="The withdrawal's digest, as `consent withdrawals` shows it, or its beginning.")
]


async def _found(client: Operator, name: str) -> dict[str, Any]:
    items = [one for one in await client.withdrawals() if one["withdrawal"].startswith(name)]
    if len(items) != 1 or not re.fullmatch("[0-9a-f]{4,64}", name):
        raise OperatorError(f"{name}: {len(items)} withdrawals begin so; `consent withdrawals` shows their digests")
    return items[0]


def _stands_still(item: dict[str, Any]) -> str:
    """What a case waits for that time alone does not bring: why it was refused, by how many, and whether it failed."""
    codes = Counter(one["code"] for one in item.get("refused", ()))
    refused = [f"{code} ({count} hospital{'s' * (count > 1)})" for code, count in sorted(codes.items())]
    failed = [] if item["fault"] is None or item["fault"] in codes else [item["fault"]]
    return ", ".join([*refused, *failed])


def _overdue(item: dict[str, Any]) -> list[str]:
    return [one["name"] for one in item["deadlines"] if one["overdue"]]


@consent_app.command()
def withdrawals(
    study: Annotated[str | None, typer.Option(help="Of this study only.")] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Every withdrawal: its state, the models that learnt from who left, deadlines that passed, and what is refused."""
    items = ask(operator, lambda client: client.withdrawals(study))
    rows = [
        [
            one["withdrawal"][:12],
            one["study_id"],
            one["type"],
            one["state"],
            "-" if one["decision"] is None else one["decision"]["effect"],
            str(len(one["models"])),
            ", ".join(_overdue(one)),
            _stands_still(one),
        ]
        for one in items
    ]
    heads = ["withdrawal", "study", "who", "state", "effect", "models", "overdue", "refused"]

    def human() -> None:
        table("Withdrawals", heads, rows, empty="Nobody has withdrawn.")
        if any(DIFFERS_BY_ONE in _stands_still(one) for one in items if one["state"] == "EXECUTING"):
            say(ONE_LEFT)

    show(items, as_json=as_json, human=human)


@consent_app.command()
def decide(
    withdrawal: WithdrawalName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The consent file to write, for officers to sign.")],
    effect: Annotated[
        str | None,
        typer.Option(help="stop_future, retrain or retire; left out, what the hospital's data-use terms promise."),
    ] = None,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Write a decision on the models that a withdrawal touches.

    It counts once two people, one of them an officer, have signed it (`consent sign --deed submit`, then another
    person's `--deed approve`) and `consent add` put it on record.

    `retrain` without exactly one hospital is refused by the others' connectors, unless their settings accept it
    (`policy.refuse_cohort_differing_by_one: false`): the difference of two sums would show the part of who left.

    Less than the hospital's data-use terms promise is refused.
    """
    if effect is not None and effect not in get_args(Effect):
        fail(f"--effect {effect}: one of {', '.join(get_args(Effect))}", code=USAGE)
    found = ask(operator, lambda client: _found(client, withdrawal))
    effect = _at_least(effect, found.get("agreed_effect"))
    made = WithdrawalEffect.model_validate(
        {
            "withdrawal": found["withdrawal"],
            "site_id": found["site_id"],
            "study_id": found["study_id"],
            "study_digest": found["study_digest"],
            "effect": effect,
            "decided_at": datetime.now(UTC).isoformat(),
        }
    )
    with friendly(code=USAGE):
        out.write_text(ConsentFile(records=(Record(document=made),)).model_dump_json(indent=2) + "\n")
    alone = effect == "retrain" and found["type"] != "patient_set"
    facts = {"file": str(out), "record": record_digest(made).hex(), "models": len(found["models"])}
    facts |= {"note": ONE_LEFT} if alone else {}
    words = f"{out}: {effect}, about {len(found['models'])} models; to be signed by two people, and added"

    def human() -> None:
        done(words)
        if alone:
            say(ONE_LEFT)

    show(facts, as_json=as_json, human=human)


def _at_least(effect: str | None, agreed: Effect | None) -> str:
    """The effect, if it is no less than what was agreed; what was agreed, where none is named."""
    if effect is None:
        return agreed or "stop_future"
    if agreed is not None and is_weaker(effect, agreed):  # type: ignore[arg-type]
        fail(
            f"--effect {effect} is less than the hospital's data-use terms promise, and would be refused: {agreed} at "
            "least; leave --effect out, or name more",
            code=USAGE,
        )
    return effect


@consent_app.command()
def receipt(
    withdrawal: WithdrawalName,
    out: Annotated[Path, typer.Option("--out", "-o", help="The receipt to write, JSON.")],
    close: Annotated[bool, typer.Option("--close", help="It is handed over: close the withdrawal.")] = False,
    operator: OperatorFile = OPERATOR_DEFAULT,
    as_json: Json = False,
) -> None:
    """Fetch the receipt of a withdrawal that was carried out, with the proofs that the log holds it."""

    async def fetch(client: Operator) -> tuple[ReceiptFile, dict[str, Any]]:
        found = await _found(client, withdrawal)
        file = await client.receipt(found)
        if close:
            found = await client.close_withdrawal(found["withdrawal"])
        return file, found

    file, found = ask(operator, fetch)
    with friendly():
        out.write_text(file.model_dump_json(indent=1) + "\n", encoding="utf-8")
    facts = {"file": str(out), "withdrawal": found["withdrawal"], "state": found["state"]}
    words = f"{out}: check it with `cohortium consent verify-receipt {out} --governance-key KEY …`"
    show(facts, as_json=as_json, human=lambda: done(words))


@consent_app.command("verify-receipt")
def check_receipt(
    file: Annotated[Path, typer.Argument(help="What `cohortium consent receipt` wrote.")],
    governance_key: Annotated[
        list[str], typer.Option("--governance-key", help="An officer's public key that you trust (hex); repeat.")
    ],
    as_json: Json = False,
) -> None:
    """Check a receipt offline, against the officers' keys, and say what it proves.

    Exit codes: 0 proved, 1 refuted, 2 unreadable.
    """
    try:
        read = ReceiptFile.model_validate_json(read_text(file, "receipt"))
        keys = frozenset(bytes.fromhex(text) for text in governance_key)
    except (ValidationError, ValueError):
        fail(f"{file} is no receipt, or a --governance-key is not 64 hexadecimal digits", code=USAGE)
    threshold = max(read.trust.threshold, min(LEAST_SIGNATURES, len(keys)))
    try:
        proven = verify_receipt(read, GovernancePin(keys, threshold))
    except ReceiptRefused as refused:
        if as_json:
            print_json({"proven": False, "reason": str(refused)})
            raise typer.Exit(1) from None
        fail(f"NOT PROVEN: {refused}")
    facts = {"proven": True, "recorded_at": proven.recorded_at, "proven_at": proven.proven_at, **proven.facts}
    show(facts, as_json=as_json, human=lambda: _print_receipt(proven))


def _print_receipt(proven: Receipt) -> None:
    facts, models = proven.facts, proven.facts["models"]
    about = f"withdrawal {facts['withdrawal'][:12]} from {facts['study']} ({facts['type']})"
    done(f"{about}, received {facts['received_at']}")
    say(f"  in the log of {facts['federation']}: recorded as entry {proven.recorded_at}, proven as {proven.proven_at}")
    for one in facts["first_rounds_without"]:
        rest = "was over" if one["round"] is None else f"goes without from round {one['round']}"
        say(f"  run {one['run_id']} {rest}")
    decision = facts["decision"]
    say(f"  decided: {decision['effect']}, by {', '.join(decision['people'])}, {decision['at']}")
    say(f"  {len(models['flagged'])} models learnt from who left, {len(models['retired'])} are retired")
    retrained = models["retrained"]
    if retrained is not None:
        began = "nothing" if retrained["start"] is None else f"version {retrained['start']['version']}"
        model = retrained["model"]
        came = "" if model is None else f": version {model['version']}, {model['model_hash'][:12]}"
        say(f"  trained again from {began} ({retrained['basis']}) as run {retrained['run_id']}{came}")
