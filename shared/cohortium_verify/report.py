"""The verdict on an audit bundle: what was checked, what failed first, what it all proves. Facts, and their words."""

from dataclasses import dataclass
from typing import Any, Literal

EXIT_PROVEN = 0
EXIT_REFUTED = 1
EXIT_UNREADABLE = 2


@dataclass(frozen=True, slots=True)
class Failure:
    """One thing that is not as it must be; `index` is the log entry it is about, where it is about one."""

    text: str
    index: int | None = None

    def __str__(self) -> str:
        return self.text if self.index is None else f"entry {self.index}: {self.text}"


@dataclass(frozen=True, slots=True)
class Check:
    """One question and its answer. `skipped`: an earlier failure left nothing to ask it of."""

    name: str
    state: Literal["passed", "failed", "skipped"]
    fact: str
    failures: tuple[Failure, ...] = ()
    notes: tuple[str, ...] = ()


def passed(name: str, fact: str, notes: tuple[str, ...] = ()) -> Check:
    """It holds; `fact` says what exactly."""
    return Check(name, "passed", fact, (), notes)


def failed(name: str, *failures: Failure, notes: tuple[str, ...] = ()) -> Check:
    """It does not hold."""
    return Check(name, "failed", str(failures[0]), failures, notes)


def skipped(name: str, why: str) -> Check:
    """It could not be asked."""
    return Check(name, "skipped", why)


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What a bundle proves. `tree_size` and `root` are of the last checkpoint that the log's key signed."""

    folder: str
    origin: str
    tree_size: int
    root: str
    keys_pinned: bool
    checks: tuple[Check, ...]
    unreadable: str = ""
    keys_of: str = "the ones you gave"
    """Whose the pinned keys are, in words."""

    @property
    def verified(self) -> bool:
        """Everything was asked and everything holds."""
        return not self.unreadable and all(check.state == "passed" for check in self.checks)

    @property
    def exit_code(self) -> int:
        """0: proven. 1: something is not as it must be. 2: this is not a bundle, or it cannot be read."""
        if self.unreadable:
            return EXIT_UNREADABLE
        return EXIT_PROVEN if self.verified else EXIT_REFUTED

    @property
    def first_failing_index(self) -> int | None:
        """The lowest log entry that any failure is about."""
        indices = [failure.index for check in self.checks for failure in check.failures if failure.index is not None]
        return min(indices, default=None)

    def as_dict(self) -> dict[str, Any]:
        """The same facts for a machine."""
        return {
            "verified": self.verified,
            "exit_code": self.exit_code,
            "origin": self.origin,
            "tree_size": self.tree_size,
            "root": self.root,
            "governance_keys": "pinned" if self.keys_pinned else "taken from the bundle",
            "first_failing_index": self.first_failing_index,
            "unreadable": self.unreadable,
            "checks": [_check_dict(check) for check in self.checks],
        }

    def text(self) -> str:
        """The report for a person: every check in a line, failures and notes below it, the verdict last."""
        if self.unreadable:
            return f"Not verified: {self.unreadable}\n"
        lines = [
            f"Audit log {self.origin or '(unknown)'} in {self.folder}: {self.tree_size} entries, root {self.root}",
            "",
        ]
        for check in self.checks:
            lines.append(f"  {_MARK[check.state]}  {check.name}: {check.fact}")
            lines += [f"          {failure}" for failure in check.failures[1:_SHOWN]]
            if len(check.failures) > _SHOWN:
                lines.append(f"          and {len(check.failures) - _SHOWN} more")
            lines += [f"          note: {note}" for note in check.notes]
        return "\n".join([*lines, "", self._verdict(), ""])

    def _verdict(self) -> str:
        keys = (
            f"The governance keys are {self.keys_of}."
            if self.keys_pinned
            else "The governance keys come from the bundle itself: compare them with keys you got from the officers, "
            "or the whole bundle could be somebody's invention."
        )
        if self.verified:
            return f"VERIFIED. {keys}"
        index = self.first_failing_index
        where = "" if index is None else f" The first failing entry is {index}."
        return f"NOT VERIFIED.{where} {keys}"


_SHOWN = 10
_MARK = {"passed": "ok    ", "failed": "FAILED", "skipped": "  --  "}


def _check_dict(check: Check) -> dict[str, Any]:
    return {
        "name": check.name,
        "state": check.state,
        "fact": check.fact,
        "failures": [{"index": failure.index, "text": failure.text} for failure in check.failures],
        "notes": list(check.notes),
    }
