"""A run of W&B whose failures are reported and never raised."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeVar

from cluster.storage.errors import MissingError, TooLargeError
from cluster.storage.storage import Storage
from trainer.config import Config
from trainer.tracking.captions import caption_of

_ID, _ORIGIN = "wandb-id", "wandb-origin"  # in the run folder
INIT_SECONDS, FINISH_SECONDS = 30.0, 60.0  # time limits of W&B at the start and at the end
WHAT_OF = ("/conditions", "/precision")  # endings of the texts in a row that say what its figures are of
GROWTH = 1.1  # a file that grows is stored again when it is this many times as large: O(size) bytes in all

T = TypeVar("T")


class TrackingConfig(Config):
    """Weights & Biases."""

    mode: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: as WANDB_MODE says, else online if there is a key (WANDB_API_KEY or a login), else offline. off, or auto
    with WANDB_MODE=disabled: no W&B; rows and pictures are in the run folder in any case."""
    project: str = "lowerbound"
    """W&B project."""
    entity: str | None = None
    """W&B team or user. null: the account's default."""

    @property
    def wanted(self) -> bool:
        """Whether W&B is used at all."""
        return self.mode != "off" and not (self.mode == "auto" and os.environ.get("WANDB_MODE") == "disabled")


def _stop_service() -> None:
    """Stop the client's service process, which may still be writing the log when `finish` has returned."""
    import wandb

    wandb.teardown()


def run_id(run: Storage, say: Callable[[str], None] = lambda line: None) -> str:
    """The id of the run folder's W&B run, made by the first process that asks.

    wandb-origin is the URL of the folder that it was made in. Where that is another one (the folder was copied or
    moved), `say` gets a warning: two copies that go on write to one W&B run. A damaged id is replaced.
    """
    own = uuid.uuid4().hex[:12]
    if run.create(_ID, own.encode()):
        run.write(_ORIGIN, run.url.encode())
        return own
    try:
        id = run.read(_ID, 1 << 16).decode()
    except (TooLargeError, UnicodeDecodeError):
        id = ""
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", id):
        say(f"W&B: {run.url}/{_ID} is damaged; a new W&B run is begun")
        run.write(_ID, own.encode())
        run.write(_ORIGIN, run.url.encode())
        return own
    with contextlib.suppress(MissingError, TooLargeError):  # of an older version
        origin = " ".join(run.read(_ORIGIN, 1 << 16).decode(errors="replace").split())
        if origin != run.url:
            ask = f"if that folder continues as well, delete {_ID} here"
            say(f"W&B: this folder continues W&B run {id}, begun in {origin[:300]}; {ask}")
    return id


class WandbRun:
    """Online, else offline, else disabled. The files of an offline run are in <run>/wandb."""

    def __init__(
        self,
        run: Storage,
        tracking: TrackingConfig,
        say: Callable[[str], None],
        id: str,
        on_failure: str = "training continues; missing rows are re-sent on resume",
        **arguments: Any,
    ) -> None:
        """`on_failure`: what a failure means for the user. `arguments` of wandb.init: name, group, config ..."""
        self.run, self.say, self.id, self.failed, self.on_failure = run, say, id, False, on_failure
        self.scratch, self.folder = self._own_folder()
        self.stored: dict[Path, tuple[int, int]] = {}  # size and modification time of the files in the run folder
        self.online = self.wanted_online = tracking.mode == "online" or (tracking.mode == "auto" and _has_key())
        self.wandb = self._start({"id": id, "project": tracking.project, "entity": tracking.entity} | arguments)
        self._try(lambda: self.wandb.define_metric("images"))
        self._try(lambda: self.wandb.define_metric("*", step_metric="images"))

    def log(self, row: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bool:
        """Log the numbers of a row, and PNG files by name; False if W&B fails."""
        return self._try(lambda: self._log(row, pictures))

    def _own_folder(self) -> tuple[TemporaryDirectory[str] | None, Path]:
        """The folder for the client's files: the run folder, or a scratch folder if that is remote or unusable."""
        if (local := self.run.local_path()) is not None:
            try:
                (local / "wandb").mkdir(parents=True, exist_ok=True)
                return None, local
            except OSError as error:  # a foreign file has that name
                self._warn(error)
        scratch = TemporaryDirectory(prefix="lowerbound-wandb-")
        (Path(scratch.name) / "wandb").mkdir()
        return scratch, Path(scratch.name)

    def attempt(self, call: Callable[[], T], otherwise: T) -> T:
        """What `call` returns; where it fails, that is reported as a failure of W&B."""
        try:
            return call()
        except Exception as error:  # of a library, or of files, that must not end a run
            self._warn(error)
            return otherwise

    def store_files(self, everything: bool = False) -> None:
        """Copy the client's files from this machine's scratch disk to the run folder, those that have changed.

        A log that has grown by less than a tenth waits, unless `everything` is asked for. Raises StorageError.
        """
        if self.scratch is None or self.online:  # an online run is at W&B, and its rows are in the run's metrics
            return
        for path in sorted((self.folder / "wandb").rglob("*")):
            if path.is_symlink() or not path.is_file():
                continue
            size, changed = path.stat().st_size, path.stat().st_mtime_ns
            before = self.stored.get(path)
            waits = before is not None and not everything and before[0] < size < GROWTH * before[0]
            if before != (size, changed) and not waits:
                self.run.write(str(path.relative_to(self.folder)), path)
                self.stored[path] = (size, changed)

    def finish(self) -> None:
        """End the run at W&B and store its files."""
        try:
            self._try(self.wandb.finish)
            self._try(_stop_service)
            self._try(lambda: self.store_files(everything=True))
        finally:
            if self.scratch:
                self.scratch.cleanup()
        if not self.online:
            self.say(f"W&B is offline: {self._commands()}")

    def _commands(self) -> str:
        """The commands that show and upload an offline run, as a POSIX shell takes them."""
        client = "wandb" if shutil.which("wandb") else f"{shlex.quote(sys.executable)} -m wandb"
        if (local := self.run.local_path("wandb")) is None or self.scratch is not None:
            where = f"a copy of {self.run.url}/wandb"
            return f"`{client} leet` shows {where}, `{client} sync` uploads its offline-run-* folders"
        where = shlex.quote(str(local))
        return f"`{client} leet {where}` shows it, `{client} sync {where}/offline-run-*-{self.id}*` uploads it"

    def _start(self, arguments: dict[str, Any]) -> Any:
        import wandb

        settings = wandb.Settings(
            x_transaction_log_flush_interval=1.0,  # a killed process loses a second of rows
            silent=True,
            console="off",
            init_timeout=INIT_SECONDS,
            finish_timeout=FINISH_SECONDS,
        )

        def start(mode: Literal["online", "offline", "disabled"]) -> Any:
            return wandb.init(dir=str(self.folder), resume="allow", mode=mode, settings=settings, **arguments)

        for mode in ("online", "offline") if self.online else ("offline",):
            try:
                return start(mode)
            except Exception as error:  # its class depends on where W&B failed
                self._warn(error)
            self.online = False
            with contextlib.suppress(Exception):
                wandb.teardown()  # its service would report the id as in use
        return start("disabled")

    def _log(self, row: Mapping[str, Any], pictures: Mapping[str, bytes]) -> None:
        import wandb
        from PIL import Image

        loaded = {
            name: wandb.Image(Image.open(io.BytesIO(png)), caption=caption_of(png) or None)
            for name, png in pictures.items()
        }
        figures = {name: value for name, value in row.items() if isinstance(value, int | float)}
        what_of = {name: value for name, value in row.items() if name.endswith(WHAT_OF)}
        self.wandb.log(figures | what_of | loaded)

    def _try(self, call: Callable[[], object]) -> bool:
        try:
            call()
        except Exception as error:  # of a library whose failures must not become ours
            self._warn(error)
            return False
        return True

    def _warn(self, error: Exception) -> None:
        """Report the first failure."""
        if not self.failed:
            reason = " ".join(str(error).split()) or type(error).__name__
            self.say(f"W&B fails ({reason}); {self.on_failure}")
        self.failed = True


def _has_key() -> bool:
    """Whether this machine is logged in to W&B."""
    if os.environ.get("WANDB_MODE"):
        return os.environ["WANDB_MODE"] == "online"
    if os.environ.get("WANDB_API_KEY"):
        return True
    import wandb

    try:
        return bool(wandb.login(prompt=False))
    except Exception:  # a damaged key or settings file
        return False
