"""What a host's name or address says by itself. Asks no resolver."""

from ipaddress import IPv4Address, IPv6Address, ip_address


def is_loopback(host: str) -> bool:
    """Whether a name or address can only mean this machine."""
    address = address_of(host)
    return host == "localhost" if address is None else address.is_loopback


def address_of(host: str) -> IPv4Address | IPv6Address | None:
    """Read an IP address; None for anything else, a name included."""
    try:
        return ip_address(host)
    except ValueError:
        return None
