"""All faults there are, entered into the catalogue."""

from __future__ import annotations

from collections.abc import Iterable

# Each enters its own.
from tests.faults import compressed, crowds, deadlines, framing, logins, places, private
from tests.faults.catalogue import Fault

#: Where the faults are, in the order in which they are played.
MODULES = (framing, compressed, logins, deadlines, private, places, crowds)

#: The codes of section 9 that no fault is expected to lead to, and why.
OUT_OF_REACH = {
    "forbidden": "only handlers of an application refuse so, and twistd tcpjson has none",
    "internal": "only handlers of an application fail",
    "timeout": "only handlers of an application, or slow checkers of passwords, take that long",
    "closed_by_handler": "only handlers of an application close",
}


def in_groups(faults: Iterable[Fault]) -> list[Fault]:
    """Those with the same options of the server next to each other, else as `MODULES` has them."""
    order = {module.__name__: index for index, module in enumerate(MODULES)}
    faults = sorted(faults, key=lambda fault: order[fault.run.__module__])
    first = {fault.options: index for index, fault in reversed([*enumerate(faults)])}
    return sorted(faults, key=lambda fault: (fault.alone, first[fault.options]))
