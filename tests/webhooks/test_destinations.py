"""Which addresses and URLs a webhook may have."""

from ipaddress import ip_address

import pytest

from darkroom.errors import ConfigError
from darkroom.webhooks.destinations import LONGEST_URL, Destinations

NOWHERE_ELSE = Destinations()

PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "9.255.255.255",
    "11.0.0.0",
    "100.63.255.255",
    "100.128.0.0",
    "126.255.255.255",
    "128.0.0.0",
    "168.63.129.15",
    "168.63.129.17",
    "169.253.255.255",
    "169.255.0.0",
    "172.15.255.255",
    "172.32.0.0",
    "192.0.1.0",
    "192.167.255.255",
    "192.169.0.0",
    "198.17.255.255",
    "198.20.0.0",
    "223.255.255.255",
    "2000::1",
    "2001:200::1",
    "2606:4700:4700::1111",
    "2a00:1450:4001:82a::200e",
    "2003::1",
    "3ffe::1",
    "::ffff:8.8.8.8",
    "64:ff9b::8.8.8.8",
]

CLOSED = [
    "0.0.0.0",
    "0.255.255.255",
    "10.0.0.0",
    "10.255.255.255",
    "100.64.0.0",
    "100.100.100.200",  # Alibaba's metadata
    "100.127.255.255",
    "127.0.0.1",
    "127.255.255.255",
    "168.63.129.16",  # Azure's own
    "169.254.0.0",
    "169.254.169.254",  # nearly everybody's metadata
    "169.254.170.2",  # of containers
    "169.254.255.255",
    "172.16.0.0",
    "172.31.255.255",
    "192.0.0.0",
    "192.0.0.192",  # Oracle's metadata
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.0",
    "192.168.255.255",
    "198.18.0.0",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::2",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:0.0.0.0",
    "::ffff:0:127.0.0.1",
    "::127.0.0.1",
    "::10.0.0.1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::169.254.169.254",
    "64:ff9b::10.1.2.3",
    "64:ff9b:1::8.8.8.8",
    "100::1",
    "1fff:ffff::1",
    "2001::1",  # Teredo
    "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "2001:10::1",
    "2001:db8::1",
    "2002:7f00:1::",  # 6to4 of 127.0.0.1
    "2002:a9fe:a9fe::1",
    "2002:808:808::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "fc00::1",
    "fd00:ec2::254",  # Amazon's metadata
    "fe80::1",
    "fe80::1%eth0",
    "febf::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
]


@pytest.mark.parametrize("address", PUBLIC)
def test_ordinary_address_is_taken(address: str) -> None:
    assert NOWHERE_ELSE.takes(ip_address(address))


@pytest.mark.parametrize("address", CLOSED)
def test_address_that_is_not_on_the_internet_is_refused(address: str) -> None:
    assert not NOWHERE_ELSE.takes(ip_address(address))


@pytest.mark.parametrize(
    ("allow", "address", "is_taken"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
        ("127.0.0.1", "::ffff:127.0.0.1", True),
        ("10.1.0.0/16", "10.1.255.255", True),
        ("10.1.0.0/16", "10.2.0.0", False),
        ("10.1.0.0/16", "64:ff9b::10.1.0.1", True),
        ("fd00::/8", "fd12::1", True),
        ("fd00::/8", "fe80::1", False),
        ("::1", "::1", True),
        ("::1", "127.0.0.1", False),
        ("hooks.internal", "10.1.0.1", False),
    ],
)
def test_operator_lets_networks_in(allow: str, address: str, is_taken: bool) -> None:
    assert Destinations.read([allow]).takes(ip_address(address)) is is_taken


@pytest.mark.parametrize(
    ("host", "is_allowed"),
    [
        ("hooks.internal", True),
        ("HOOKS.Internal.", True),
        ("other.internal", False),
        ("a.hooks.internal", False),
        ("internal", False),
    ],
)
def test_operator_lets_names_in(host: str, is_allowed: bool) -> None:
    assert Destinations.read(["hooks.internal"]).takes_any_address(host) is is_allowed


@pytest.mark.parametrize(
    "entry", ["10.0.0.1/8", "10.0.0.300", "10.0.0.0/33", "http://a", "a b", "*", "", "a..b", "0x7f.1"]
)
def test_entry_that_is_neither_name_nor_network_is_a_wrong_setting(entry: str) -> None:
    with pytest.raises(ConfigError, match="DARKROOM_WEBHOOK_ALLOW"):
        Destinations.read([entry])


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org",
        "https://example.org/hook?a=b&c=%20",
        "http://example.org:8080/",
        "https://EXAMPLE.org./",
        "https://xn--bcher-kva.example/",
        "https://8.8.8.8/",
        "https://[2606:4700:4700::1111]:8443/x",
        "https://a_b.example/",
        "https://example.org/" + "x" * (LONGEST_URL - 20),
    ],
)
def test_ordinary_url_is_taken(url: str) -> None:
    assert NOWHERE_ELSE.problem_of(url) is None


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("https://example.org/" + "x" * (LONGEST_URL - 19), f"has {LONGEST_URL + 1} characters"),
        ("", "no URL has"),
        ("example.org", "does not begin"),
        ("ftp://example.org/", "does not begin"),
        ("file:///etc/passwd", "does not begin"),
        ("gopher://example.org/", "does not begin"),
        ("//example.org/", "does not begin"),
        ("https://", "names no host"),
        ("https:///path", "names no host"),
        ("https://:8080/", "names no host"),
        ("https://example.org:0/", "names no host"),
        ("https://example.org:65536/", "is no URL"),
        ("https://example.org:x/", "is no URL"),
        ("https://[::1/", "is no URL"),
        ("https://user@example.org/", "user name"),
        ("https://user:secret@example.org/", "user name"),
        ("https://@example.org/", "user name"),
        ("https://example.org#@internal/", "no URL has"),
        ("https://example.org\\@internal/", "no URL has"),
        ("https://exa mple.org/", "no URL has"),
        ("https://example.org/\r\nHost: internal", "no URL has"),
        ("https://b\u00fccher.example/", "no URL has"),
        ("https://example\u3002org/", "no URL has"),
        ("https://exa%6dple.org/", "names no host"),
        ("https://.example.org/", "names no host"),
        ("https://127.0.0.1/", "not on the internet"),
        ("https://10.0.0.1:8443/", "not on the internet"),
        ("https://169.254.169.254/latest/meta-data/", "not on the internet"),
        ("https://[::1]/", "not on the internet"),
        ("https://[::ffff:127.0.0.1]/", "not on the internet"),
        ("https://[fe80::1%25eth0]/", "not on the internet"),
        ("https://0.0.0.0/", "not on the internet"),
    ],
)
def test_url_that_cannot_be_a_webhooks_is_refused(url: str, problem: str) -> None:
    assert problem in (NOWHERE_ELSE.problem_of(url) or "")


def test_url_of_an_allowed_network_is_taken() -> None:
    assert Destinations.read(["127.0.0.0/8"]).problem_of("http://127.0.0.1:9000/hook") is None
