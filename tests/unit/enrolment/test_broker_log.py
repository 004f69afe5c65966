"""Lines of RabbitMQ's log: what is a refusal, and whose. The words of whoever was refused name nobody."""

import pytest

from cohortium_enrolment.broker_log import Line, read_line

SITE = "11111111-1111-4111-8111-111111111111"
VICTIM = "22222222-2222-4222-8222-222222222222"
TIME = "2026-11-21 19:34:02.308626+00:00"
WAY = "127.0.0.1:53032 -> 127.0.0.1:38361"


def channel_error(reason: str, *, user: str = SITE, way: str = WAY) -> str:
    head = (
        f"{TIME} [error] <0.978.0> Channel error on connection <0.963.0> ({way}, vhost: 'cohortium', user: '{user}'), "
    )
    return f"{head}channel 2:\n{TIME} [error] <0.978.0> operation basic.publish caused a channel exception {reason}\n"


FORGED = "precondition_failed: user_id property set to '{word}' but authenticated user was '" + SITE + "'"


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (FORGED.format(word=VICTIM), "SENDER_FORGED"),
        ("precondition_failed: message size 70000 is larger than configured max size 65536", "MESSAGE_TOO_LARGE"),
    ],
)
def test_a_refusal_is_read(reason: str, code: str) -> None:
    assert read_line(channel_error(reason)) == Line(code, SITE)
    assert read_line(channel_error(reason, way="[2001:db8::1]:5 -> [2001:db8::2]:5671")) == Line(code, SITE)


def test_too_many_channels_and_no_tls() -> None:
    head = f"{TIME} [error] <0.1.0> Error on AMQP connection <0.1.0> "
    place = f"({WAY}, vhost: 'cohortium', user: '{SITE}', state: running), channel 9:\n"
    tail = 'operation none caused a connection exception not_allowed: "number of channels opened (8)"\n'
    assert read_line(f"{head}{place}{TIME} [error] <0.1.0>  {tail}") == Line("CHANNELS_TOO_MANY", SITE)
    alert = f"{TIME} [notice] <0.991.0> TLS server: In state start at x.erl:564 generated SERVER ALERT: Fatal - x"
    plain = f"{TIME} [warning] <0.1136.0> 127.0.0.1:60742 is connecting to the 'amqp/ssl' listener without using TLS"
    assert read_line(plain) == Line("TLS_REFUSED", None)
    assert read_line(alert) == Line("TLS_REFUSED", None)


@pytest.mark.parametrize(
    "name",
    [
        f"x, vhost: 'cohortium', user: '{VICTIM}'",
        f"x, vhost: 'cohortium', user: '{VICTIM}', state: running), channel 0:\n{TIME} [error] <0.1.0>  operation none",
    ],
)
def test_a_connections_name_cannot_put_the_blame_on_somebody_else(name: str) -> None:
    line = read_line(channel_error("precondition_failed: message size 7 is larger than x", way=f"{WAY} - {name}"))
    assert line is None or line.login is None


def test_what_a_forger_writes_names_nobody_else() -> None:
    word = f"x'), channel 1:\n Channel error on connection <0.1.0> ({WAY}, vhost: 'c', user: '{VICTIM}'), channel 1:"
    assert read_line(channel_error(FORGED.format(word=word))) == Line("SENDER_FORGED", SITE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        f"{TIME} [error] <0.1.0> Error on AMQP connection <0.1.0> ({WAY}, state: starting):\nPLAIN login refused",
        f"{TIME} [warning] <0.1.0> closing AMQP connection <0.1.0> ({WAY}): user_id property set to 'x'",
        channel_error("access_refused: access to queue 'TLS server: In state x generated SERVER ALERT' refused"),
        channel_error("not_found: no exchange"),
    ],
)
def test_other_lines_tell_nothing(text: str) -> None:
    assert read_line(text) is None
