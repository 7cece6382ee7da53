"""One server of an OpenStack Swift installation that lives in one folder: `swift_process FOLDER ROLE`.

ROLE is account, container, object or proxy; `swift_process FOLDER rings PORT PORT PORT` writes, before these are
started, the three tables that say that account, container and object servers listen on these ports.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from typing import Any

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


def one_creator_at_a_time(_: dict[str, str], **__: str) -> Callable[[Any], Any]:
    """A filter of the proxy's pipeline that makes If-None-Match atomic, as S3 promises it.

    Swift looks whether there is an object when a PUT begins and stores it when it ends: of eight writers at once,
    two or more succeeded in two thirds of the trials. There is one proxy process, so one lock a path is enough.
    """
    from eventlet.semaphore import Semaphore

    locks: dict[str, Any] = defaultdict(Semaphore)

    def wrap(application: Any) -> Any:
        def answer(environment: dict[str, Any], start_response: Any) -> Any:
            if environment["REQUEST_METHOD"] == "PUT" and "HTTP_IF_NONE_MATCH" in environment:
                with locks[environment["PATH_INFO"]]:
                    return application(environment, start_response)
            return application(environment, start_response)

        return answer

    return wrap


if __name__ == "__main__":
    leave_with_parent()
    folder, role, *rest = sys.argv[1:]
    if role == "rings":
        write_rings(folder, [int(port) for port in rest])
    else:
        sys.exit(serve(folder, role))
