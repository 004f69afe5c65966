"""What an AMQP address says: its virtual host, its login, whether it is encrypted, whether it stays on this machine."""

import ipaddress
import re
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from cohortium_kit.errors import ConfigurationError

UNCHECKED = re.compile(r"(^|&)no_verify_ssl\b")


def vhost_of(url: str) -> str:
    """The virtual host; `/` where the address names none."""
    return unquote(urlsplit(url).path.removeprefix("/")) or "/"


def login_of(url: str) -> str | None:
    """The user name, or None where the address brings none."""
    name = urlsplit(url).username
    return None if name is None else unquote(name)


def is_tls(url: str) -> bool:
    """Whether the connection is encrypted. Raises `ConfigurationError` if the certificate would not be checked."""
    parts = urlsplit(url)
    if UNCHECKED.search(parts.query):
        raise ConfigurationError("amqp_url says no_verify_ssl: remove it, and name the authority with cafile=FILE")
    return parts.scheme == "amqps"


def is_loopback(url: str) -> bool:
    """Whether the address is this machine's own. A name other than localhost is not: it may be anybody's."""
    host = urlsplit(url).hostname or "localhost"
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def with_login(url: str, name: str, password: str) -> str:
    """The same address with another login."""
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]
    login = f"{quote(name, safe='')}:{quote(password, safe='')}"
    return urlunsplit(parts._replace(netloc=f"{login}@{place}"))
