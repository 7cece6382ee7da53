"""Command line of the local cluster: python -m cluster.local up|down|env|drain N|start N|cut N|reconnect N."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.local.hosts import down, drain, plug, running, start_host, up
from cluster.local.namespaces import LocalClusterError


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m cluster.local", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--folder", type=Path, default=Path("/tmp/lb-local"), help="folder of its state (default: %(default)s)"
    )
    commands = parser.add_subparsers(dest="command", required=True)
    start = commands.add_parser("up", help="start a cluster")
    start.add_argument("--hosts", type=int, default=3, help="default: %(default)s")
    start.add_argument("--cpus", type=int, default=2, help="CPUs per host (default: %(default)s)")
    start.add_argument("--plain", action="store_true", help="plain processes, no namespaces")
    for name in ("env", "down"):
        commands.add_parser(name)
    for name in ("drain", "start", "cut", "reconnect"):
        commands.add_parser(name).add_argument("number", type=int, help="host, from 0 (the head)")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except LocalClusterError as error:
        sys.exit(f"error: {error}")


def _run(options: argparse.Namespace) -> None:
    if options.command == "up":
        cluster = up(options.folder, options.hosts, options.cpus, options.plain)
        what = "hosts in network namespaces" if cluster.namespaces else "hosts as plain processes"
        print(f"{cluster.hosts} {what}, {cluster.cpus} CPUs each; dashboard {cluster.address}, token {cluster.token}")
        print('eval "$(python -m cluster.local env)"')
        print(f"python -m jobs.submit CONFIG --workers {cluster.hosts} --follow")
        return
    if options.command == "down":
        down(options.folder)
        return
    cluster = running(options.folder)
    if options.command == "env":
        for name, value in cluster.client_environment.items():
            print(f"export {name}={value}")
    elif not 0 <= options.number < cluster.hosts:
        raise LocalClusterError(f"host {options.number}: must be 0 to {cluster.hosts - 1}")
    elif options.command == "drain":
        drain(cluster, options.number)
    elif options.command == "start":
        start_host(cluster, options.number)
    else:
        plug(cluster, options.number, {"cut": "down", "reconnect": "up"}[options.command])


if __name__ == "__main__":
    main(sys.argv[1:])
