"""Whom PostgreSQL runs as: it refuses to run as root, and needs an account that the system knows."""

import os
import pwd
from pathlib import Path
from typing import NamedTuple

from cenote.errors import ServerStartError


class Account(NamedTuple):
    """An existing account; cenote never creates one."""

    uid: int
    gid: int


def account_for(cluster: Path) -> Account | None:
    """The account to drop to, None when this process can run PostgreSQL as it is.

    Root drops to the owner of an existing cluster, else to `postgres`, else to `nobody` (uid 65534).

    Raises:
        ServerStartError: our uid has no passwd entry, or root finds no account to drop to.
    """
    if os.geteuid() != 0:
        _entry(os.geteuid())
        return None
    try:
        owner = cluster.stat().st_uid
    except FileNotFoundError:
        owner = 0
    if owner != 0:
        return Account(owner, _entry(owner).pw_gid)
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return Account(entry.pw_uid, entry.pw_gid)
    return Account(65534, _entry(65534).pw_gid)


def _entry(uid: int) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        raise ServerStartError(
            f"PostgreSQL cannot run as uid {uid}: the system has no account of that number",
            hint="add it to /etc/passwd (or use nss_wrapper), run as another user, or give sql=URL",
        ) from None
