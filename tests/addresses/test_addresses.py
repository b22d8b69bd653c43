"""Which hosts can only be this machine: what decides who is let in without a key, and who is spoken to by no proxy."""

import pytest

from darkroom.addresses import address_of, is_loopback


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.8.8", "::1"])
def test_this_machine_is_known_by_its_names(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "localhost.example.net", "127.0.0.1.example.net"])
def test_anything_else_may_be_another_machine(host: str) -> None:
    assert not is_loopback(host)


def test_name_is_no_address() -> None:
    assert address_of("localhost") is None
    assert str(address_of("::1")) == "::1"
