"""`cohortium pki`: a certificate authority of the federation's own, its broker's certificate and the one that enrolment
shows the broker; a look at given ones.

P-256 with SHA-256: what every OpenSSL and Erlang that RabbitMQ runs on can do. The authority signs servers only.
"""

import ipaddress
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from cohortium_cli.federation import write_secret
from cohortium_cli.options import Json
from cohortium_cli.output import USAGE, done, fail, friendly, show
from cohortium_kit.errors import ConfigurationError

T = TypeVar("T")
AUTHORITY_DAYS = 3650
SERVER_DAYS = 397
"""What browsers and operating systems accept at most; renew once a year."""
EARLIER = timedelta(minutes=10)
"""Certificates begin a little in the past: clocks differ."""

pki_app = typer.Typer(no_args_is_help=True, help="The broker's certificate: make it, or check a given one.")
HostNames = Annotated[list[str], typer.Argument(help="Names or addresses under which the broker is reached.")]
Folder = Annotated[Path, typer.Option("--dir", help="Folder of the certificates and keys.")]


def make_authority(federation: str, now: datetime) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A self-signed authority that may sign servers' certificates and no further authority."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Cohortium authority of {federation}"[:64])])
    usage = _usage(key_cert_sign=True, crl_sign=True)
    builder = _builder(name, name, key.public_key(), now, AUTHORITY_DAYS)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(usage, critical=True)
    return builder.sign(key, hashes.SHA256()), key


def make_server(
    authority: x509.Certificate, authority_key: ec.EllipticCurvePrivateKey, hosts: list[str], now: datetime
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """A server's certificate for exactly these hosts; raises `ConfigurationError` for what is no name or address."""
    if not hosts:
        raise ConfigurationError("HOST: give at least one name under which the broker is reached")
    names = x509.SubjectAlternativeName([general_name(host) for host in hosts])
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0][:64])])
    builder = _builder(name, authority.subject, key.public_key(), now, SERVER_DAYS)
    signer = authority_key.public_key()
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (names, False),
        (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(authority_key, hashes.SHA256()), key


def check_server(certificate: bytes, key: bytes, authority: bytes, host: str, now: datetime) -> x509.Certificate:
    """The first certificate of a chain, PEM, if a client that trusts `authority` would take it for `host` now.

    Raises `ConfigurationError` naming what is wrong and what to do.
    """
    chain = _read("--cert", lambda: x509.load_pem_x509_certificates(certificate))
    roots = _read("--ca", lambda: x509.load_pem_x509_certificates(authority))
    private = _read("--key", lambda: serialization.load_pem_private_key(key, None))
    if private.public_key() != chain[0].public_key():
        raise ConfigurationError("--key: it is not the key of this certificate; give the one it was made with")
    if not chain[0].not_valid_before_utc <= now < chain[0].not_valid_after_utc:
        ends = f"{chain[0].not_valid_after_utc:%Y-%m-%d}"
        raise ConfigurationError(f"--cert: it is not valid now, it ends {ends}; have a new one made")
    builder = PolicyBuilder().store(Store(roots)).time(now)
    try:
        subject = general_name(host)
        verifier = builder.build_server_verifier(subject)
        verifier.verify(chain[0], chain[1:])
    except VerificationError as error:
        raise ConfigurationError(f"--cert: no client would take it for {host}: {error}") from None
    return chain[0]


def general_name(host: str) -> x509.DNSName | x509.IPAddress:
    """A name or an address as certificates have it; raises `ConfigurationError`."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    labels = host.removeprefix("*.").split(".")
    if len(host) > 253 or not all(label and len(label) < 64 and label.replace("-", "").isalnum() for label in labels):
        raise ConfigurationError(f"HOST: {host!r} is neither a name nor an address; write it as in amqps://HOST")
    return x509.DNSName(host)


def pem(certificate: x509.Certificate) -> str:
    """The certificate as text."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def key_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The key as text, not encrypted: its file is for its owner only."""
    plain = serialization.NoEncryption()
    return key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain).decode()


@pki_app.command()
def authority(
    federation: Annotated[str, typer.Argument(help="The federation's name.")],
    directory: Folder = Path("pki"),
    as_json: Json = False,
) -> None:
    """Make the federation's certificate authority: ca.crt for everybody, ca.key for nobody else."""
    with friendly(code=USAGE):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        _absent(directory / "ca.crt")
        certificate, key = make_authority(federation, datetime.now(UTC))
        write_secret(directory / "ca.key", key_pem(key).rstrip("\n"))
        (directory / "ca.crt").write_text(pem(certificate), encoding="ascii")
    facts = {"certificate": str(directory / "ca.crt"), "until": certificate.not_valid_after_utc.isoformat()}
    words = f"{directory}/ca.crt, until {certificate.not_valid_after_utc:%Y-%m-%d}; keep {directory}/ca.key offline"
    show(facts, as_json=as_json, human=lambda: done(words))


@pki_app.command()
def server(
    hosts: HostNames,
    directory: Folder = Path("pki"),
    name: Annotated[str, typer.Option(help="Of the files, NAME.crt and NAME.key.")] = "broker",
    as_json: Json = False,
) -> None:
    """Make a server's certificate, broker.crt and broker.key, signed by the authority in the same folder."""
    with friendly(code=USAGE):
        if not name.replace("-", "").isalnum() or name == "ca":
            raise ConfigurationError(f"--name {name}: use letters, digits and -; ca is the authority's")
        _absent(directory / f"{name}.crt")
        signer = _read("ca.crt", lambda: x509.load_pem_x509_certificate(_bytes(directory / "ca.crt")))
        key = _read("ca.key", lambda: serialization.load_pem_private_key(_bytes(directory / "ca.key"), None))
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != signer.public_key():
            raise ConfigurationError(f"{directory}/ca.key is not the key of ca.crt; make both with `pki authority`")
        certificate, own = make_server(signer, key, hosts, datetime.now(UTC))
        write_secret(directory / f"{name}.key", key_pem(own).rstrip("\n"))
        (directory / f"{name}.crt").write_text(pem(certificate), encoding="ascii")
    ends = certificate.not_valid_after_utc
    facts = {"certificate": str(directory / f"{name}.crt"), "hosts": hosts, "until": ends.isoformat()}
    words = f"{directory}/{name}.crt for {', '.join(hosts)}, until {ends:%Y-%m-%d}"
    show(facts, as_json=as_json, human=lambda: done(words))


@pki_app.command()
def check(
    host: Annotated[str, typer.Argument(help="The name that hospitals dial.")],
    cert: Annotated[Path, typer.Option(help="The broker's certificate, with intermediate ones after it; PEM.")],
    key: Annotated[Path, typer.Option(help="Its key; PEM.")],
    ca: Annotated[Path, typer.Option(help="The authority that hospitals will trust; PEM.")],
    as_json: Json = False,
) -> None:
    """Check a given certificate: its key, its time, its chain and its name."""
    with friendly():
        found = check_server(_bytes(cert), _bytes(key), _bytes(ca), host, datetime.now(UTC))
    ends = found.not_valid_after_utc
    facts = {"host": host, "until": ends.isoformat()}
    show(facts, as_json=as_json, human=lambda: done(f"{cert} is good for {host}, until {ends:%Y-%m-%d}"))


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(subject_name=subject, issuer_name=issuer, public_key=key)
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - EARLIER).not_valid_after(now + timedelta(days=days))
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _usage(*, digital_signature: bool = False, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _read(what: str, load: Callable[[], T]) -> T:
    try:
        return load()
    except (ValueError, TypeError):
        raise ConfigurationError(f"{what}: not PEM, or its key has a password; give it without one") from None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"{path}: {error.strerror}; make it first, or name another file", code=USAGE)


def _absent(path: Path) -> None:
    if path.exists():
        raise ConfigurationError(f"{path} is there already; choose another folder, or move it away")
