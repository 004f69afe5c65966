"""What an AMQP address says, and which ones a strict federation never dials."""

import pytest

from cohortium_kit.addresses import is_loopback, is_tls, login_of, vhost_of, with_login
from cohortium_kit.broker_check import check_address
from cohortium_kit.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "vhost"),
    [("amqps://h/", "/"), ("amqps://h", "/"), ("amqps://u:p@h:5671/co?cafile=/x", "co"), ("amqp://h/%2Fa", "/a")],
)
def test_vhost(url: str, vhost: str) -> None:
    assert vhost_of(url) == vhost


def test_login() -> None:
    assert login_of("amqps://h/") is None
    assert login_of("amqps://a%40b:p@h/") == "a@b"
    assert with_login("amqps://old:pw@h:1/v?cafile=/x", "a@b", "p:/") == "amqps://a%40b:p%3A%2F@h:1/v?cafile=/x"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "127.9.9.9"])
def test_this_machine(host: str) -> None:
    assert is_loopback(f"amqp://{host}:5672/")


@pytest.mark.parametrize("host", ["broker", "10.0.0.1", "localhost.example", "127.0.0.1.example"])
def test_the_network_in_the_clear_is_refused(host: str) -> None:
    assert not is_loopback(f"amqp://{host}/")
    with pytest.raises(ConfigurationError, match="amqps://"):
        check_address(f"amqp://u:p@{host}/", "strict")
    check_address(f"amqps://u:p@{host}/", "strict")


@pytest.mark.parametrize("value", ["1", "true", "0", ""])
def test_a_certificate_is_always_checked(value: str) -> None:
    with pytest.raises(ConfigurationError, match="no_verify_ssl"):
        is_tls(f"amqps://h/?heartbeat=3&no_verify_ssl={value}")


def test_guest_is_refused_and_a_trial_is_not() -> None:
    with pytest.raises(ConfigurationError, match="guest"):
        check_address("amqp://guest:guest@127.0.0.1/", "strict")
    check_address("amqp://guest:guest@broker/", "trial")
