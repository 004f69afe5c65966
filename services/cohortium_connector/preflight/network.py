"""The way to the broker, step by step below AMQP: its name, the proxy, the port, TLS and the certificate."""

import asyncio
import contextlib
import os
import ssl
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from cryptography import x509

from cohortium_connector.preflight.findings import Finding, failed, ok, skipped, warning
from cohortium_kit.addresses import is_loopback, is_tls
from cohortium_kit.amqp import client_context

LIMIT_S = 10.0
SOON = timedelta(days=14)
PROXIES = ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy")
AMQP_HEADER = b"AMQP\x00\x00\x09\x01"


def place_of(url: str) -> tuple[str, int]:
    """Host and port of an AMQP address."""
    parts = urlsplit(url)
    return parts.hostname or "localhost", parts.port or (5671 if parts.scheme == "amqps" else 5672)


def proxy(environment: Mapping[str, str] = os.environ) -> Finding:
    """Whether a proxy is set that AMQP will not use."""
    found = [name for name in PROXIES if environment.get(name)]
    return warning("proxy", "PROXY_SET", variables=", ".join(found)) if found else ok("proxy")


async def way(url: str) -> list[Finding]:
    """Name, connection, TLS and certificate, up to the first that fails; the others are skipped."""
    host, port = place_of(url)
    try:
        async with asyncio.timeout(LIMIT_S):
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=0)
    except (OSError, TimeoutError):
        return [failed("name", "NAME_NOT_FOUND", host=host), skipped("connection"), *_no_tls()]
    addresses = sorted({str(entry[4][0]) for entry in found})
    steps = [ok("name", host=host, addresses=", ".join(addresses[:4]))]
    try:
        took_ms = await _dial_ms(host, port)
    except (OSError, TimeoutError) as error:
        return [*steps, failed("connection", "NO_CONNECTION", place=f"{host}:{port}", error=_word(error)), *_no_tls()]
    steps.append(ok("connection", place=f"{host}:{port}", connect_ms=round(took_ms, 1)))
    if is_tls(url):
        return [*steps, *await _encrypted(url, host, port)]
    answers = await _speaks_amqp(host, port, None)
    if not answers:
        steps[-1] = failed("connection", "NOT_AMQP", place=f"{host}:{port}")
    facts = {"encrypted": "no"}
    plain = skipped("tls", None, **facts) if is_loopback(url) else failed("tls", "TLS_MISSING", **facts)
    return [*steps, plain, skipped("certificate")]


async def _dial_ms(host: str, port: int) -> float:
    began = time.perf_counter()
    async with asyncio.timeout(LIMIT_S):
        _, writer = await asyncio.open_connection(host, port)
    took_ms = 1000 * (time.perf_counter() - began)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return took_ms


async def _encrypted(url: str, host: str, port: int) -> list[Finding]:
    context = client_context(url)
    try:
        async with asyncio.timeout(LIMIT_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        facts = {"error": error.verify_message, "host": host}
        return [ok("tls"), failed("certificate", "CERTIFICATE_REFUSED", **facts)]
    except (ssl.SSLError, OSError, TimeoutError) as error:
        return [failed("tls", "NOT_AMQP", error=_word(error)), skipped("certificate")]
    secured = writer.get_extra_info("ssl_object")
    found = x509.load_der_x509_certificate(secured.getpeercert(binary_form=True))
    protocol, cipher = secured.version() or "", secured.cipher()
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    ends = found.not_valid_after_utc
    facts = {"ends": ends.isoformat(), "issuer": found.issuer.rfc4514_string()[:200], "host": host}
    seen = ok("certificate", **facts)
    if ends - datetime.now(UTC) < SOON:
        seen = warning("certificate", "CERTIFICATE_ENDS_SOON", **facts)
    secure = ok("tls", protocol=protocol, cipher=cipher[0] if cipher else "")
    if not await _speaks_amqp(host, port, context):
        return [failed("tls", "NOT_AMQP", protocol=protocol), seen]
    return [secure, seen]


async def _speaks_amqp(host: str, port: int, context: ssl.SSLContext | None) -> bool:
    """Whether a method frame answers the protocol header (AMQP 0-9-1, 4.2.2)."""
    try:
        async with asyncio.timeout(LIMIT_S):
            reader, writer = await asyncio.open_connection(host, port, ssl=context)
            writer.write(AMQP_HEADER)
            first = await reader.read(1)
    except (OSError, TimeoutError):
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return first == b"\x01"


def _no_tls() -> list[Finding]:
    return [skipped("tls"), skipped("certificate")]


def _word(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__
