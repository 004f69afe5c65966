"""Stable codes and the sentence that goes with each: one table, shown wherever a code is shown to a person.

A code is given once and keeps its meaning. The sentence names the fact and the remedy.
"""

from cohortium_messages.duo import DUO_TERMS

_DOCUMENTS = {
    "STUDY_VERSION": ("The study version", "officers can approve it with `cohortium consent`"),
    "AGREEMENT": ("The agreement", "its parties can sign a new version"),
    "ETHICS": ("The ethics approval", "the hospital can record the board's new decision"),
    "TERMS": ("The data-use terms", "the hospital can publish new ones"),
    "APPROVAL": ("The hospital's approval", "two people of the hospital can approve the study"),
}
_STANDINGS = {
    "NOT_FOUND": "{thing} that is needed is not on record here; {remedy}, and share it.",
    "NOT_APPROVED": "{thing} has not been approved by enough people; {remedy}.",
    "SUSPENDED": "{thing} is suspended; the people who approved it can approve it again.",
    "TERMINATED": "{thing} was ended; {remedy}.",
    "NOT_YET_VALID": "{thing} begins later; wait, or {remedy}.",
    "EXPIRED": "{thing} has ended; {remedy}.",
    "SUPERSEDED": "{thing} was replaced by a newer one; have two people of the hospital approve the study on that one.",
    "OF_ANOTHER": "{thing} is not about this study, this protocol or this hospital; {remedy}.",
}


def _standings() -> dict[str, str]:
    return {
        f"{document}_{standing}": text.format(thing=thing, remedy=remedy)
        for document, (thing, remedy) in _DOCUMENTS.items()
        for standing, text in _STANDINGS.items()
    }


SENTENCES: dict[str, str] = {
    # consent and grants
    "GRANT_NOT_FOUND": "The hospital has not granted this study version; it can approve the offer in its connector.",
    "GRANT_EXPIRED": "The hospital's grant has ended; it can approve the study again with a later end.",
    "GRANT_NOT_YET_VALID": "The hospital's grant begins later; wait, or have it approved with an earlier beginning.",
    "GRANT_WITHDRAWN": "The hospital has withdrawn from the study; no further round will ask it.",
    "MODEL_RETIRED": "Governance officers retired this model after a withdrawal; use one that was trained again.",
    "RETRAINED": "The run was ended because officers had its study trained again without those who left.",
    "GRANT_ROUNDS_SPENT": "The hospital's grant covers fewer rounds than the study has; it can approve more rounds.",
    "NOT_A_MEMBER": "The site is not in the study's membership manifest; governance officers can sign a new version.",
    "SITE_REVOKED": "The site's identity key is revoked; enrol it again with a new invitation.",
    # the institution plane of consent
    "GRANT_EXCEEDS_APPROVAL": "The connector's grant goes further than two people approved; have it granted again.",
    "GRANT_UNGOVERNED": "The grant names no approved documents; have two people approve it with `cohortium consent`.",
    "EPSILON_ABOVE_TERMS": "The study asks for more privacy loss than the hospital's data-use terms allow.",
    "EPSILON_ABOVE_APPROVAL": "The study asks for more privacy loss than the hospital's people approved.",
    "MODEL_EGRESS_REFUSED": "The hospital's data-use terms let no model leave, so no sum may be made of its data.",
    "DUO_MISMATCH": "The study asks for a use that the hospital's data-use terms do not allow.",
    "DOCUMENTS_UNREADABLE": "The site's own consent documents could not be judged; its log says why.",
    **_standings(),
    # registration
    "TOKEN_UNKNOWN": "No invitation fits this registration; ask the operator for a new one.",
    "TOKEN_SPENT": "The invitation was used already; ask the operator for a new one.",
    "TOKEN_EXPIRED": "The invitation has expired; ask the operator for a new one.",
    "BAD_PROOF": "The registration's proof does not fit its key; run the registration again from the connector.",
    # a login at the broker
    "LOGIN_MALFORMED": "The password is no login statement; a connector makes its own, nobody types one.",
    "LOGIN_BAD_PROOF": "The login was not made with this site's key or token; somebody tries, or the key was replaced.",
    "LOGIN_EARLY": "The site's clock is more than five minutes ahead; set it right.",
    "CLOCK_AHEAD": "The sender's clock is more than five minutes ahead of the audit service's; set both right (NTP).",
    "LOGIN_ENDED": "The login's time is over; the connector makes a new one by itself.",
    "LOGIN_TOO_LONG": "The login would last longer than the federation allows; lower `credential_s` in the connector.",
    "LOGIN_RETIRED": "A newer login took this one's place; if the site uses only one connector, a copy was stolen.",
    "LOGIN_TOO_OFTEN": "The site logged in too often within a minute; look for a second connector with the same key.",
    "SITE_UNKNOWN": "Nobody of this name was invited; invite the hospital, or look who tries.",
    "TOO_MANY_CONNECTIONS": "The site had more connections open than it may; look for a second connector.",
    "QUEUE_FORBIDDEN": "The site tried to read a queue that is not its own; the broker refused.",
    "KEY_FORBIDDEN": "The site tried to publish under a key that is not its own; the broker refused.",
    "EXCHANGE_FORBIDDEN": "The site tried to publish to an exchange that is not for sites; the broker refused.",
    "SENDER_FORGED": "The site sent in another's name; the broker refused.",
    "MESSAGE_TOO_LARGE": "The site sent a message over the broker's limit; the broker refused.",
    "CHANNELS_TOO_MANY": "The site opened more channels than it may; the broker closed its connection.",
    "TLS_REFUSED": "Somebody did not speak TLS 1.3, or did not like the broker's certificate; nobody came in.",
    "VHOST_FORBIDDEN": "The site tried to use another virtual host of the broker; the broker refused.",
    "DECLARE_FORBIDDEN": "The site tried to declare, delete or bind something; the broker refused.",
    # the connector's own checks
    "STUDY_UNKNOWN": "The task names a study version that was never offered here; wait for the offer, then approve it.",
    "BAD_SCHEDULER_SIGNATURE": "The task is not signed by the scheduler that governance named; nothing was read.",
    "POLICY_REFUSED": "The task asks for more than this hospital's policy allows; its administrator can see the rule.",
    "COHORT_TOO_SMALL": "Fewer sites would take part than this hospital's policy demands.",
    "COHORT_DIFFERS_BY_ONE": "This sum and the last one differ by exactly one site, which would reveal its part.",
    "BASE_MODEL_UNKNOWN": "The task starts from a model that this site cannot obtain or verify.",
    "UPDATE_TOO_STALE": "The site's update started from a model that is too old for this window; it trains again.",
    "TRAINING_FAILED": "Training stopped with an error at the site; its own log says which.",
    # the hospital's data against the study
    "DATA_NOT_FOUND": "The site has no data bound to this study; its administrator can name the file in the settings.",
    "COLUMN_TWICE": "Two columns of the hospital's table have this name; rename or remove one of them.",
    "COLUMN_MISSING": "A column that the study names is not in the site's table; add it, or map it.",
    "VALUE_OUT_OF_RANGE": "A column has values outside the study's range; the site's own log has the rows.",
    "LEVEL_UNKNOWN": "A column has values that are not among the study's levels; the site's own log has the rows.",
    "MISSING_REFUSED": "A column has missing values and the study says `missing: refuse`; see its other choices.",
    "LABEL_INVALID": "The label is missing or no value that the study allows; the site's own log has the rows.",
    "VALUE_NOT_A_NUMBER": "A numeric column has values that are no numbers; the site's own log has the rows.",
    "VALUE_NOT_WHOLE": "A whole-number column has values with a fraction; the site's own log has the rows.",
    "FIRST_RECORD_INVALID": "A patient's first record is no day, or not the same in all rows; the site's log has them.",
    "FILE_UNREADABLE": "The site's table cannot be read as CSV or Parquet; its own log says why.",
    "MODEL_REFUSED": "The model that the site received does not fit the study; nothing was trained.",
    "UPDATE_NOT_FINITE": "Training left the numbers at the site; try a smaller learning rate.",
    "NO_TRAINING_ROWS": "The split leaves no row to train on at this site.",
    # the hospital's privacy budget
    "EPSILON_EXHAUSTED": "A privacy budget has no room for the study; see `cohortium budget` at the hospital.",
    "DELTA_TOO_LARGE": "The hospital's delta is too large for that many patients; it can set a smaller one.",
    "LEDGER_FROZEN": "The hospital's privacy ledger is frozen, so nothing is charged to it any more.",
    "PLAN_OVER": "The run's privacy plan is closed at the hospital, so nothing more is charged to it; start a new run.",
    "PLAN_SPENT": "Sums failed after hospitals were charged for them; training ended with fewer rounds than planned.",
    "EVALUATION_SPENT": "The evaluation failed after hospitals were charged for it, so no metric is published.",
    "LEDGER_BROKEN": "The hospital's privacy ledger failed its check; nothing is done before its administrator looks.",
    # patients
    "CONSENT_SOURCE_MISSING": "The data-use terms ask for patients' consent; bind a consent source to the study.",
    "PERSON_COLUMN_MISSING": "Patients must be asked, and the table names none: set the dataset's person_column.",
    "CONSENT_SOURCE_UNREADABLE": "The hospital's consent source cannot be read as it must be; its own log says why.",
    "COHORT_CHANGED": "The hospital's cohort is not the one that was approved; its people can approve the study again.",
    "BELOW_MIN_PERSONS": "Fewer patients than this hospital's minimum may be used for the study.",
    "LOG_FORKED": "The audit log showed this hospital two histories; it takes no task before its administrator looks.",
    "WITNESS_DAMAGED": "The hospital cannot read what it cosigned of a log; it takes no task before its people look.",
    "LOG_STALE": "This hospital has seen no newer checkpoint of the study's audit log for too long; ask the operator.",
    "INCLUSION_OVERDUE": "The audit log does not prove that it holds what this hospital reported; ask the operator.",
    "UNLOGGED_TASK": "The task does not prove that its authorisation is in the study's audit log; nothing was read.",
    # windows
    "TOO_FEW_MEMBERS": "The study promises to hide a hospital among more than are members: have officers admit more.",
    "RECRUITING_EXPIRED": "Too few members granted in time: ask those still invited, then submit the study again.",
    "NOT_ENOUGH_READY": "Fewer sites than the study's minimum were ready in time.",
    "NOT_ENOUGH_UPLOADS": "Fewer uploads than the study's minimum arrived in time; nothing was opened.",
    "NOT_ENOUGH_ECHOES": "Fewer sites than the threshold confirmed the survivor set; nothing was opened.",
    "NOT_ENOUGH_SHARES": "Fewer sites than the threshold gave shares before the window expired; nothing was opened.",
    "SHARES_INCONSISTENT": "A site dealt shares that do not fit its commitments; the log names it.",
    "CANARY_MISMATCH": "The opened sum failed its check words; the result was thrown away.",
    "EDGE_COMMITS_FALSE": "The site's pair keys differ from those of more sites than can be lying; it was left out.",
    "EDGE_COMMITS_DIFFER": "Two sites committed to different pair keys; both were left out of the sum.",
    "UPLOADS_LOST": "Stored uploads could not be read again, so the sum was given up; the window is tried again.",
    "SUMS_REFUSED": "The opened counts contradict each other, so a site sent none that can be; they were thrown away.",
    "STEP_DIVERGED": "The server's step left the numbers; try a smaller server learning rate.",
    "SUM_NOT_FINITE": "The summed update is not finite; the result was thrown away.",
    "TOO_MANY_ATTEMPTS": "The window was tried again as often as the settings allow; look at the sites' reasons.",
    "STOPPED_BY_OPERATOR": "An operator stopped the run.",
    "MANIFEST_CHANGED": "The membership manifest changed while the window was open; it is opened again.",
    "SUPERSEDED": "A newer window took this one's place.",
    # strict sessions: LightGBM
    "SITE_SILENT": "A site did not answer a step in time, so the session paused; it goes on when all sites are back.",
    "SESSION_LOST": "The server of this session stopped; training goes on from the last finished tree in a new one.",
    "SITES_LOST": "Sites of the cohort did not come back in time; training ended early, with fewer trees than planned.",
    "SITE_REFUSED": "A site of the cohort refused or lost its grant, and training may not go on without it.",
    "SITES_CHANGED": "The session has other sites than the run's first one, which the study does not allow.",
    "DATA_CHANGED": "The site's rows changed since the run began; sums before and after would show the difference.",
    "JOURNAL_UNUSABLE": "The site cannot grow the earlier trees again; training goes on from the model that they make.",
    "EXPIRED": "Nothing was heard of the session for longer than the study allows, so the site left it.",
    "ABANDONED": "The site was restored from a backup during the window; it joins the next one.",
    "RESTARTED": "The site's connector was restarted during the session; it joins the next one.",
    "SITE_LEFT": "A site withdrew or was revoked: its session paused, or its sum was set aside and is asked again.",
    "SESSION_CLOSED": "The session was closed while the site was in it; the site waits for the next one.",
    "SESSION_KEY_REFUSED": "The key of the session's results was not made for this site; nothing was sent.",
    "STEP_REFUSED": "A site sent something else than this step of the session asks for; the log names it.",
    "FRAME_REFUSED": "A frame of the session was not made by the other end; it was dropped.",
    "STEP_REUSED": "A step of the session would have been masked twice; the site left before anything was sent.",
    "CHAIN_MISMATCH": "A site was shown other results than the server holds, so no sum of both would open.",
    "RESULT_REFUSED": "The server signed a result that this step cannot have; the site left the session.",
    "AGREEMENT_FAILED": "Sites of the session grew different trees; the software versions of the hospitals may differ.",
    "AGREEMENT_REFUSED": "What the sites agreed on is no part of a model that may be published; it was thrown away.",
    "TOO_MANY_STEPS": "The session took more steps than trees of the study's size can need; it was ended.",
    "ROUNDS_LOST": "Finished trees could not be read again, so no model could be made of them.",
    "OUT_OF_BOUNDS": "A gradient at the site exceeds its public bound, so a sum could overflow; nothing was sent.",
    "UNKNOWN_COLLECTIVE": "LightGBM at the site asked for something that no rule covers; see LightGBM's version.",
    "SPLIT_REFUSED": "The splits that were relayed to the site do not fit its features; it left the session.",
    "BINS_REFUSED": "LightGBM at the site cuts a feature into other bins than the published ones; see its version.",
    "LABELS_ALL_ZERO": "All counts at the site are 0, which LightGBM's poisson objective refuses; use regression.",
}


def sentence(code: str) -> str:
    """The human sentence for `code`; for an unknown code, the code itself. `DUO_MISMATCH:NCU` adds what NCU means."""
    code, _, term = code.partition(":")
    if term:
        meaning = DUO_TERMS[term].meaning if term in DUO_TERMS else "a term that is not supported here"
        return f"{SENTENCES[code]} {term}: {meaning}." if code in SENTENCES else f"{code}: {term}."
    return SENTENCES.get(code, code.replace("_", " ").capitalize() + ".")
