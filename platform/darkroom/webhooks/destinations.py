"""Where a webhook may go: which addresses are the outside world's, and which the operator has let in.

Knows addresses and URLs; asks no resolver. What a name means is known only when a connection is made: see sending.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import urlsplit

from darkroom.addresses import address_of
from darkroom.errors import ConfigError

LONGEST_URL = 2048
SCHEMES = ("https", "http")
# What RFC 3986 lets a URL be made of. Readers of URLs disagree about everything else.
URL_CHARACTERS = re.compile(r"[A-Za-z0-9._~:/?\[\]@!$&'()*+,;=%-]+")
NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*\.?")

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# The registries of special addresses (RFC 6890 and its successors), and what clouds answer their own hosts at. Python's
# is_global is no substitute: it lets multicast and NAT64 through, and it changes between patch releases.
CLOSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this host
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT; Alibaba's metadata is in it
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's own services, behind a public address
        "169.254.0.0/16",  # link-local; nearly every cloud's metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments; Oracle's metadata
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarks
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
# Whatever is not global unicast is closed: loopback, unspecified, private (fc00::/7), link-local, multicast.
OPEN_IPV6 = IPv6Network("2000::/3")
CLOSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4: an IPv4 address in disguise
        "3fff::/20",  # documentation
    )
)
# Prefixes whose last 32 bits are the IPv4 address that is really meant: mapped, compatible, translated, NAT64.
EMBEDDING = tuple(IPv6Network(f"{prefix}/96") for prefix in ("::ffff:0:0", "::", "::ffff:0:0:0", "64:ff9b::"))


@dataclass(frozen=True)
class Destinations:
    """The rules of one deployment. What is allowed by name may have any address; the operator vouches for it."""

    allowed_names: frozenset[str] = frozenset()
    allowed_networks: tuple[Network, ...] = ()

    @classmethod
    def read(cls, allow: Iterable[str]) -> "Destinations":
        """Read the operator's list of names, addresses and networks. Raises ConfigError."""
        names, networks = set(), []
        for entry in allow:
            network = _network(entry)
            if network is not None:
                networks.append(network)
            elif NAME.fullmatch(entry.lower()) and not entry.rstrip(".").rpartition(".")[2].isdigit():
                names.add(entry.lower().rstrip("."))
            else:
                raise ConfigError(f"DARKROOM_WEBHOOK_ALLOW: {entry} is no host name, no address and no network")
        return cls(frozenset(names), tuple(networks))

    def takes_any_address(self, host: str) -> bool:
        """Whether the operator has allowed this host by its name."""
        return host.lower().rstrip(".") in self.allowed_names

    def takes(self, address: Address) -> bool:
        """Whether a webhook may be sent to this address."""
        address = meant(address)
        is_allowed = any(address in network for network in self.allowed_networks)
        return is_allowed or is_public(address)

    def problem_of(self, url: str) -> str | None:
        """Say why a URL cannot be a webhook's, as far as the URL itself tells; None when nothing speaks against it."""
        if len(url) > LONGEST_URL:
            return f"has {len(url)} characters"
        if not URL_CHARACTERS.fullmatch(url):
            return "holds a character that no URL has; write it percent-encoded"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return "is no URL"
        if parts.scheme not in SCHEMES:
            return f"does not begin with {' or '.join(f'{scheme}://' for scheme in SCHEMES)}"
        if "@" in parts.netloc:
            return "holds a user name: a signature says who sends"
        address = address_of(host)
        if not host or (address is None and not NAME.fullmatch(host)) or port == 0:
            return "names no host"
        if address is not None and not self.takes(address):
            return "is at an address that is not on the internet"
        return None


def is_public(address: Address) -> bool:
    """Whether an address is an ordinary one on the internet. Of an embedded IPv4 address, ask what is `meant`."""
    if isinstance(address, IPv4Address):
        return not any(address in network for network in CLOSED_IPV4)
    return address in OPEN_IPV6 and not any(address in network for network in CLOSED_IPV6)


def meant(address: Address) -> Address:
    """The IPv4 address that an IPv6 address stands for, or the address itself."""
    if isinstance(address, IPv6Address) and any(address in network for network in EMBEDDING):
        last = int(address) & 0xFFFFFFFF
        # ::, ::1 and their like are IPv6's own.
        return IPv4Address(last) if last > 0xFFFF else address
    return address


def _network(text: str) -> Network | None:
    try:
        return ip_network(text)
    except ValueError:
        return None
