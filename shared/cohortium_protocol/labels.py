"""Every domain-separation string, in one list. A label is given once and never used again for another meaning.

A label is the first part of the pre-authentication encoding that is hashed, signed or given to a key derivation, so
bytes made for one purpose can never be taken for bytes made for another.
"""

from typing import Final

from cohortium_messages.envelope import SIGNATURE_LABEL

V: Final = b"HFL-SA/1/"
"""Version prefix of the secure sum SA/1."""

PARAMS: Final = V + b"params"
READY: Final = V + b"ready"
ROSTER: Final = V + b"roster"
PAIR: Final = V + b"pair"
PRG: Final = V + b"prg"
COMMIT_SELF: Final = V + b"commit-self"
COMMIT_PAIR: Final = V + b"commit-pair"
EDGES: Final = V + b"edges"
VECTOR: Final = V + b"vec"
UPLOAD: Final = V + b"upload"
BOX: Final = V + b"box"
BOX_SIGNATURE: Final = V + b"boxsig"
SURVIVORS: Final = V + b"survivors"
ECHO: Final = V + b"echo"
UNMASK: Final = V + b"unmask"
UNMASK_BOX: Final = V + b"unmask-box"
ABORT: Final = V + b"abort"
CHUNK: Final = V + b"chunk"
ROTATION: Final = V + b"rotation"
KEEP: Final = V + b"keep"
ROUNDING: Final = V + b"rounding"
RETRY: Final = V + b"retry"
STRICT_CHAIN: Final = V + b"strict-chain"
STRICT_LINK: Final = V + b"strict-link"
STRICT_KEY: Final = V + b"strict-key"
STRICT_RESULT_KEY: Final = V + b"strict-result-key"
STRICT_RESULT: Final = V + b"strict-result"

MODEL_CHUNK: Final = b"cohortium/model-chunk/1"
MODEL_KEY: Final = b"cohortium/model-key/1"

ENVELOPE: Final = SIGNATURE_LABEL
TRUST: Final = b"cohortium/trust/1"
MANIFEST: Final = b"cohortium/manifest/1"
GRANT: Final = b"cohortium/grant/1"
GRANT_WITHDRAWN: Final = b"cohortium/grant-withdrawn/1"
TOKEN: Final = b"cohortium/enrolment-token/1"
REGISTRATION: Final = b"cohortium/registration/1"
BROKER_LOGIN: Final = b"cohortium/broker-login/1"
BROKER_INVITED: Final = b"cohortium/broker-invited/1"
PERSON_PASS: Final = b"cohortium/person-pass/1"
PERSON_SECRETS: Final = b"cohortium/person-secrets/1"
RANDOM_TREES: Final = b"cohortium/random-trees/1"
PRIVATE_RANDOM: Final = b"cohortium/private-random/1"
PRIVATE_CONTEXT: Final = b"cohortium/private-context/1"
PRIVATE_SPLIT: Final = b"cohortium/private-split/1"
LEDGER_ENTRY: Final = b"cohortium/ledger-entry/1"
LEDGER_LINK: Final = b"cohortium/ledger-link/1"
LEDGER_STATEMENT: Final = b"cohortium/ledger-statement/1"
LEDGER_PROOF: Final = b"cohortium/ledger-proof/1"
COHORT_TAG: Final = b"cohortium/cohort-tag/1"
PERSON: Final = b"cohortium/person/1"
CONSENT_RECORD: Final = b"cohortium/consent-record/1"
CONSENT_ACT: Final = b"cohortium/consent-act/1"
PERMIT: Final = b"cohortium/permit/1"
