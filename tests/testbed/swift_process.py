"""One server of an OpenStack Swift installation that lives in one folder: `swift_process FOLDER ROLE`.

ROLE is account, container, object or proxy; `swift_process FOLDER rings PORT PORT PORT` writes, before these are
started, the three tables that say that account, container and object servers listen on these ports.
"""

from __future__ import annotations

import sys

from tests.testbed.processes import leave_with_parent

STORES = ("account", "container", "object")


def write_rings(folder: str, ports: list[int]) -> None:
    from swift.common.ring import RingBuilder

    for store, port in zip(STORES, ports, strict=True):
        builder = RingBuilder(part_power=4, replicas=1, min_part_hours=0)
        where = {"ip": "127.0.0.1", "port": port, "replication_ip": "127.0.0.1", "replication_port": port}
        builder.add_dev({"id": 0, "region": 1, "zone": 1, "weight": 1.0, "device": "disk", "meta": "", **where})
        builder.rebalance()
        builder.get_ring().save(f"{folder}/{store}.ring.gz")


def serve(folder: str, role: str) -> int:
    import swift.common.utils

    swift.common.utils.SWIFT_CONF_FILE = f"{folder}/swift.conf"  # there is no option for it
    from swift.common.wsgi import run_wsgi

    return run_wsgi(f"{folder}/{role}.conf", f"{role}-server", verbose=True)


if __name__ == "__main__":
    leave_with_parent()
    folder, role, *rest = sys.argv[1:]
    if role == "rings":
        write_rings(folder, [int(port) for port in rest])
    else:
        sys.exit(serve(folder, role))
