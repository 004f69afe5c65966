"""A process gives up what it does not need before it sees a patient's row. Standard library only; Linux.

What is left: reading and writing files with the rights of its user. What is gone: every network interface, the right to
gain rights, capabilities (except to reach files, where it runs as root), inherited descriptors and environment, core
dumps. The one socket that may be kept is the connector's own. Sockets that are files are not in a network namespace:
keep none of them where this user may open them.
"""

import ctypes
import errno
import os
import resource
import signal
from pathlib import Path

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
CAPABILITY_VERSION_3 = 0x20080522
CAP_DAC_OVERRIDE = 1
LAST_CAPABILITY = 63
OPEN_FILES = 256


class CannotIsolate(Exception):
    """The kernel, or what contains this process, does not let it give up its network."""


def cut_network() -> None:
    """Move into a new, empty network namespace. Call before any thread starts. Raises `CannotIsolate`."""
    if not hasattr(os, "fork") or not Path("/proc/self/ns/net").exists():
        raise CannotIsolate("this operating system has no network namespaces")
    unshare = getattr(_libc(), "unshare", None)
    if unshare is None:
        raise CannotIsolate("this C library has no unshare")
    if unshare(CLONE_NEWNET) == 0:
        return
    user, group = os.geteuid(), os.getegid()
    if unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise CannotIsolate(f"unshare says {errno.errorcode.get(number, number)}: {os.strerror(number)}")
    _keep_names(user, group)


def drop_rights(parent: int, *, keep: int | None = None) -> None:
    """Give up the rest, all inherited descriptors but `keep` among it, and die with `parent`. Call after `cut_network`,
    which needs some of it."""
    os.umask(0o077)
    os.closerange(3, keep if keep is not None else 1 << 20)
    if keep is not None:
        os.closerange(keep + 1, 1 << 20)
    for limit, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_NOFILE, OPEN_FILES)):
        resource.setrlimit(limit, (value, value))
    _drop_capabilities()
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    _prctl(PR_SET_DUMPABLE, 0)
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # last: a change of rights would clear it
    if parent and os.getppid() != parent:
        raise SystemExit(0)  # the connector died before it could be watched


def scrub_environment(threads: int) -> None:
    """Keep what the interpreter needs, and tell numeric libraries how many threads they may start."""
    kept = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR") if name in os.environ}
    os.environ.clear()
    os.environ.update(kept)
    for library in ("OMP", "MKL", "OPENBLAS"):
        os.environ[f"{library}_NUM_THREADS"] = str(threads)
    os.environ["HOME"] = os.devnull


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, value: int) -> None:
    if hasattr(libc := _libc(), "prctl"):
        libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0)


def _keep_names(user: int, group: int) -> None:
    """In the new user namespace be who we were, so that files keep their owner's name. Only cosmetic."""
    for path, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        try:
            Path(f"/proc/self/{path}").write_text(text)
        except OSError:
            return


def _drop_capabilities() -> None:
    libc = _libc()
    if not hasattr(libc, "capset"):
        return
    kept = 1 << CAP_DAC_OVERRIDE if os.geteuid() == 0 else 0
    for capability in range(LAST_CAPABILITY + 1):
        if not kept >> capability & 1:
            _prctl(PR_CAPBSET_DROP, capability)
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(kept, kept, 0, 0, 0, 0)  # effective, permitted, inheritable; low then high words
    libc.capset(header, data)
