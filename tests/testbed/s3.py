"""A real S3-compatible store for tests: OpenStack Swift with its S3 interface, on one machine, without root.

It checks signatures, keeps what it has through a restart and knows multipart uploads, which the usual in-memory
stand-ins do not. One filter of ours makes If-None-Match atomic, as S3's is (swift_process.py says why). Everything lies
in one folder; four processes that end with the tests.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import secrets
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.testbed import processes
from tests.testbed.swift_process import STORES

START_TIMEOUT = 90.0  # seconds; 3 to 7 on an idle machine
PAGE = 20  # entries of one answer to a listing; 1000 elsewhere, but then no test would ever ask for a second page

_SWIFT = """
[swift-hash]
swift_hash_path_prefix = lowerbound
swift_hash_path_suffix = lowerbound
[storage-policy:0]
name = one
default = yes
"""

# workers = 0: one process a role, no forks, so that its pid is all there is to end.
# The timeouts are long because a busy machine of two cores is not a broken node; a container update that is given up
# would leave an object out of listings for good, as no background daemon runs here that would repeat it.
_STORE = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/disks
user = {user}
mount_check = false
disable_fallocate = true
fallocate_reserve = 0
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = {store}-server
[app:{store}-server]
use = egg:swift#{store}
conn_timeout = 20
node_timeout = 60
container_update_timeout = 60
"""

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
user = {user}
workers = 0
log_level = WARNING
[pipeline:main]
pipeline = catch_errors one_creator listing_formats s3api tempauth copy slo dlo proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
allow_account_management = true
conn_timeout = 20
node_timeout = 60
error_suppression_interval = 1
error_suppression_limit = 1000000
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:one_creator]
paste.filter_factory = tests.testbed.swift_process:one_creator_at_a_time
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:s3api]
use = egg:swift#s3api
location = {region}
s3_acl = false
check_bucket_owner = false
auth_pipeline_check = false
min_segment_size = 1
max_bucket_listing = {page}
[filter:tempauth]
use = egg:swift#tempauth
user_{account}_{user_name} = {secret} .admin
[filter:copy]
use = egg:swift#copy
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
"""


class S3Server:
    """The store in `folder`: `start`, make a `bucket`, hand out `environment`, `stop`.

    `stop` and `start` may be repeated: an outage, after which everything that was stored is still there.
    """

    region = "us-east-1"
    access_key = "lowerbound:tester"

    def __init__(self, folder: Path):
        self.folder = folder
        self.secret_key = secrets.token_hex(16)
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        _require_swift()
        _require_attributes(folder)
        (folder / "disks" / "disk").mkdir(parents=True)
        *stores, self.port = processes.free_ports(4)
        self._configure(dict(zip(STORES, stores, strict=True)))

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which a process reaches this store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_ALLOW_HTTP": "true",
        }

    def client(self) -> Any:
        """A boto3 client: another view of the store than that of the code under test."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=self.region,
            config=Config(connect_timeout=5, read_timeout=60, retries={"max_attempts": 1}),
        )

    def bucket(self, name: str) -> str:
        """Make the bucket (3 letters or more, digits, hyphens); its URL. Nothing happens if it is there already."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def start(self) -> None:
        """Start what does not run; returns when the store has answered a signed request."""
        for role in (*STORES, "proxy"):
            if role not in self._servers:
                arguments = [str(self.folder), role]
                self._servers[role] = processes.start_module("tests.testbed.swift_process", arguments, self._log)
        try:
            processes.wait_until(self._answers, START_TIMEOUT, "the S3 server's first answer", pause=0.2)
        except (TimeoutError, RuntimeError) as error:
            log = self._log.read_text(errors="replace")[-4000:]
            self.close()
            raise RuntimeError(f"the S3 server did not start: {error}\n{log}") from None

    def stop(self) -> None:
        """An outage: connections are refused until `start`. What is stored stays."""
        self._end("proxy")

    def close(self) -> None:
        for role in list(self._servers):
            self._end(role)

    def _end(self, role: str) -> None:
        if server := self._servers.pop(role, None):
            processes.stop(server, grace=0.5)

    @property
    def _log(self) -> Path:
        return self.folder / "swift.log"

    def _configure(self, ports: dict[str, int]) -> None:
        account, user_name = self.access_key.split(":")
        values = {"folder": self.folder, "user": _user(), "region": self.region, "secret": self.secret_key}
        (self.folder / "swift.conf").write_text(_SWIFT)
        for store, port in ports.items():
            (self.folder / f"{store}.conf").write_text(_STORE.format(store=store, port=port, **values))
        values |= {"account": account, "user_name": user_name, "page": PAGE}
        (self.folder / "proxy.conf").write_text(_PROXY.format(port=self.port, **values))
        rings = [sys.executable, "-m", "tests.testbed.swift_process", str(self.folder), "rings"]
        subprocess.run([*rings, *map(str, ports.values())], cwd=processes.REPOSITORY, check=True)

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        for role, server in self._servers.items():
            if server.poll() is not None:
                raise RuntimeError(f"its {role} server left with status {server.returncode}")
        try:
            self.bucket("ready")  # goes through the account and container servers
            self.client().put_object(Bucket="ready", Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.getuid()).pw_name


def _require_swift() -> None:
    missing = [name for name in ("swift", "boto3") if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeError(f"{' and '.join(missing)} not installed: they are test dependencies, run `make install`")


def _require_attributes(folder: Path) -> None:
    """Swift keeps an object's metadata in extended attributes of its file."""
    folder.mkdir(parents=True, exist_ok=True)
    probe = folder / "probe"
    probe.touch()
    try:
        os.setxattr(probe, "user.lowerbound", b"1")
    except OSError as error:
        raise RuntimeError(
            f"{folder}: this file system has no user extended attributes ({error.strerror}), which the S3 test server "
            "needs; run pytest with --basetemp on another one"
        ) from None
    finally:
        probe.unlink()
