"""Who may open an association: called AE title, calling AE title and the address it calls from."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from dicomnode.receive.settings import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejection:
    """An A-ASSOCIATE-RJ and the sentence that explains it to the operator."""

    #: Result, source, reason (PS3.8 9.3.4).
    parameters: tuple[int, int, int]
    code: str
    text: str


_CALLED_UNKNOWN: Final = (1, 1, 7)
_CALLING_UNKNOWN: Final = (1, 1, 3)
_LIMIT_EXCEEDED: Final = (2, 3, 2)


class Policy:
    """The allow-list, parsed once."""

    def __init__(self, settings: Settings) -> None:
        self._called = frozenset(settings.ae_titles)
        self._accept_unknown = settings.accept_unknown_sources
        self._sources: dict[str, list[IPv4Network | IPv6Network]] = {
            title: [ip_network(network, strict=False) for network in networks]
            for title, networks in settings.sources.items()
        }

    def judge(self, called: str, calling: str, address: str) -> Rejection | None:
        """None when the association may be opened."""
        if called not in self._called:
            text = f"called AE title {called!r} is not this node's; it answers to {', '.join(sorted(self._called))}"
            return Rejection(parameters=_CALLED_UNKNOWN, code="called-ae-unknown", text=text)
        networks = self._sources.get(calling)
        if networks is None:
            if self._accept_unknown:
                return None
            text = f"calling AE title {calling!r} is not under sources; add it there to let {address} send"
            return Rejection(parameters=_CALLING_UNKNOWN, code="calling-ae-unknown", text=text)
        if networks and not _inside(address, networks):
            text = f"{calling!r} may not call from {address}; see sources.addresses"
            return Rejection(parameters=_CALLING_UNKNOWN, code="address-not-allowed", text=text)
        return None

    @staticmethod
    def full(limit: int) -> Rejection:
        """What an association too many is told: try again later."""
        text = f"{limit} associations are open; receive.max_associations allows no more"
        return Rejection(parameters=_LIMIT_EXCEEDED, code="too-many-associations", text=text)


def _inside(address: str, networks: list[IPv4Network | IPv6Network]) -> bool:
    peer = ip_address(address.partition("%")[0])
    if isinstance(peer, IPv6Address) and peer.ipv4_mapped:
        peer = peer.ipv4_mapped
    return any(peer in network for network in networks)
