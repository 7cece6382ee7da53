"""Run a command on an AWS spot instance and stop it before the instance is reclaimed.

    python -m cluster.deploy.spot ray start --address=... --block

AWS gives two minutes' notice before it reclaims a spot instance. The command then receives SIGTERM, on which `ray start
--block` drains its node: its ranks are notified, commit, and restart elsewhere. SIGTERM and SIGINT are forwarded.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence

METADATA = "http://169.254.169.254"  # instance metadata service (IMDSv2)
POLL_SECONDS = 5.0


def reclaimed(metadata: str) -> bool:
    """Whether AWS has announced that it reclaims this instance. False without an answer."""
    try:
        ask = urllib.request.Request(
            f"{metadata}/latest/api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"}
        )
        with urllib.request.urlopen(ask, timeout=2) as answer:
            token = answer.read().decode()
        notice = urllib.request.Request(
            f"{metadata}/latest/meta-data/spot/instance-action", headers={"X-aws-ec2-metadata-token": token}
        )
        with urllib.request.urlopen(notice, timeout=2):
            return True
    except (urllib.error.URLError, OSError):  # 404: no notice
        return False


def main(command: Sequence[str]) -> int:
    """Run the command; terminate it on a notice. Returns its exit status."""
    metadata = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", METADATA).rstrip("/")
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: child.send_signal(number))
    announced = False
    while True:
        try:
            return child.wait(POLL_SECONDS)
        except subprocess.TimeoutExpired:
            if not announced and reclaimed(metadata):
                announced = True
                print("AWS reclaims this instance: draining it", flush=True)
                child.terminate()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(
            "error: give the command to run, as in: python -m cluster.deploy.spot ray start --address=HEAD:6379 --block"
        )
    sys.exit(main(sys.argv[1:]))
