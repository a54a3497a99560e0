"""Ports that a server can have again: nobody listens on them, and no client is given them."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from trimtab import ports
from trimtab.ports import FIRST, free_port, is_free


def test_a_port_is_free_and_below_those_of_clients() -> None:
    begin = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = [free_port() for _ in range(50)]

    assert all(FIRST <= port < begin and is_free("127.0.0.1", port) for port in found)
    assert len(set(found)) > 25


def test_a_port_where_somebody_listens_is_not_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as held:
        assert not is_free("127.0.0.1", held.getsockname()[1])


@pytest.mark.parametrize("begin", [FIRST, FIRST + 300])
def test_where_clients_may_have_any_port_it_is_one_of_the_systems_choice(
    monkeypatch: pytest.MonkeyPatch, begin: int
) -> None:
    monkeypatch.setattr(ports, "_clients_begin", lambda: begin)
    besides = range(FIRST, FIRST + 300)

    assert free_port(besides=besides) not in besides
