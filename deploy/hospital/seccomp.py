#!/usr/bin/env python3
"""Makes seccomp-connector.json: the container engine's own profile, and one call more.

    python3 seccomp.py PROFILE.json > seccomp-connector.json

PROFILE.json is the profile that your engine ships (Docker: `profiles/seccomp/default.json` of your version; Podman:
/usr/share/containers/seccomp.json). The call is `unshare` with exactly the two flags with which the training process
moves itself into an empty network before it sees a row. Every other use of `unshare` stays forbidden.
"""

import json
import sys

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def with_own_network(profile: dict) -> dict:
    """The profile with the rule at its end; the same again adds nothing."""
    rule = {
        "names": ["unshare"],
        "action": "SCMP_ACT_ALLOW",
        "args": [{"index": 0, "value": CLONE_NEWUSER | CLONE_NEWNET, "op": "SCMP_CMP_EQ"}],
        "comment": "Cohortium: the training process gives up its network",
    }
    rules = profile.get("syscalls", [])
    return {**profile, "syscalls": rules if rule in rules else [*rules, rule]}


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        json.dump(with_own_network(json.load(file)), sys.stdout, indent=2)
