"""`run --reload`: start the launcher anew whenever a file of the user's project is saved.

This process watches, checks what was saved in a process of its own, and then has the running launcher drain
before it starts the next. It never imports the user's module and holds nothing of the tree; the embedded
nats-server is its child, so that it goes on over every reload.
"""

from __future__ import annotations

import importlib.util
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import structlog
import typer

from understudy.actors.errors import ConfigurationError
from understudy.config.layers import FILE_NAME
from understudy.config.load import load_settings
from understudy.runtime.cli.sources import Sources
from understudy.runtime.lifeline import die_with_us
from understudy.runtime.supervision.processes import describe_exit
from understudy.runtime.target import inspect_target
from understudy.runtime.telemetry.logs import resolve_format

if TYPE_CHECKING:
    from understudy.config.settings import Settings
    from understudy.runtime.broker.embedded import EmbeddedServer

CLEAN = 0
# A first start that ends with one of these was mistyped, or has no broker: no save would mend that.
NOT_STARTED = (2, 3)
# Saves that come within STEP_MS of each other are one, for at most GROUP_MS.
STEP_MS = 100
GROUP_MS = 400
# How often the launcher is looked after while nothing is saved.
TICK_MS = 200
# So often the files are looked at though nothing was heard of them: on a busy machine no event came of some
# saves, and a shared folder may tell nothing.
LOOK_SECONDS = 2.0

_log = structlog.get_logger(__name__)


class Reloader:
    """Launchers one after another, each with the code as it was last saved.

    Args:
        target: `module:attribute`.
        config: the option `--config`.
        flags: the options that are settings, by dotted key; None is one that wasn't given.
        settings: what they and all else amount to.

    Raises:
        ConfigurationError: the extra isn't installed, or there is too much to watch.
    """

    def __init__(
        self, target: str, config: Path | None, flags: dict[str, object], settings: Settings
    ) -> None:
        if importlib.util.find_spec("watchfiles") is None:
            raise ConfigurationError(
                "--reload needs the package watchfiles; install it: pip install 'understudy[reload]'"
            )
        self._target = target
        self._config = config
        self._flags = flags
        self._log_format = resolve_format(settings.log.format)
        # Looked at before the first import, so that what is saved meanwhile counts as changed.
        self._sources = Sources.of(target, config or Path(FILE_NAME), without=settings.directory)
        self._server: EmbeddedServer | None = None
        self._launcher: subprocess.Popen[bytes] | None = None
        self._is_told = False
        self._signals = 0
        self._status = CLEAN

    def run(self, server: EmbeddedServer | None) -> int:
        """Run until a signal, and return the last launcher's exit status; call it in the main thread.

        The first SIGTERM or SIGINT has the launcher drain, a second one has it kill. A launcher that ends by
        itself is started again at the next save; only if the first can't even start, this ends too.

        Args:
            server: the embedded nats-server, if there is one.

        Raises:
            ConfigurationError: the files can't be watched.
        """
        self._server = server
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        _log.info("reloads when a Python file or the settings are saved", below=str(Path.cwd()))
        self._start()
        may_be_mistyped = True
        try:
            for files_may_differ in self._wake_ups():
                if self.is_set():
                    break
                self._look_after_server()
                if self._has_ended():
                    if may_be_mistyped and self._status in NOT_STARTED:
                        break
                    # After a drain all is as it was asked for.
                    tell = _log.error if self._status else _log.info
                    tell("the run has ended; the next save starts it again", exit_status=self._status)
                if files_may_differ and (changed := self._sources.changes()):
                    may_be_mistyped = False
                    self._reload(changed)
        finally:
            self._stop()
        return self._status

    def _look_after_server(self) -> None:
        if self._server is not None and not self._server.is_alive():
            _log.error("the embedded nats-server died; stop this run and start it anew")
            self._server = None

    # SIGTERM and SIGINT

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signals += 1
        # One that a reload has told to drain must not take the first signal for its second.
        if not self._is_told or self._signals > 1:
            self._tell()

    def is_set(self) -> bool:
        """Return whether to end; what watchfiles asks its `stop_event`."""
        return self._signals > 0

    # The launcher

    def _start(self) -> None:
        self._is_told = False
        # A session of its own, so that Ctrl-C comes to this process alone, and the launcher has it once.
        self._launcher = subprocess.Popen(
            [sys.executable, "-P", "-m", "understudy.runtime", "run", self._target, *self._options()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_us(),  # noqa: PLW1509 - the only other thread is watchfiles', and knows no Python
        )
        if self._signals:  # it came too early to be told
            self._tell()

    def _options(self) -> list[str]:
        """Return the options of this run for the launcher, to which the embedded server is one of many."""
        flags = self._flags
        if self._server is not None:
            flags = flags | {"nats.servers": [self._server.url]}
        options: list[tuple[str, object]] = [("--config", self._config)]
        for key, value in flags.items():
            option = f"--{key.removeprefix('nats.').replace('.', '-')}"
            options += [(option, one) for one in (value if isinstance(value, list) else [value])]
        return [text for option, value in options if value is not None for text in (option, str(value))]

    def _tell(self) -> None:
        if self._launcher is not None:
            self._is_told = True
            self._launcher.terminate()

    def _has_ended(self) -> bool:
        """Return whether the launcher has ended since this was asked last, and note its status."""
        if self._launcher is None or self._launcher.poll() is None:
            return False
        self._note_end()
        return True

    def _stop(self) -> None:
        """Have the launcher drain, and return when it has ended."""
        if self._launcher is None:
            return
        if not self._is_told:
            self._tell()
        self._launcher.wait()
        self._note_end()

    def _note_end(self) -> None:
        assert self._launcher is not None
        status, self._launcher = self._launcher.returncode, None
        if status < 0 and not (self._is_told and -status == signal.SIGTERM):
            _log.error("the run was ended", reason=describe_exit(status))
            status = 128 - status
        # One that was told before it heard signals had nothing up yet.
        self._status = max(status, CLEAN)

    # Reloading

    def _reload(self, changed: list[str]) -> None:
        _log.info("changed", files=changed)
        # While the module is imported a signal ends that; else it would have to wait for it.
        handlers = {
            number: signal.signal(number, signal.default_int_handler)
            for number in (signal.SIGTERM, signal.SIGINT)
        }
        try:
            load_settings(config_file=self._config, flags=self._flags)
            inspect_target(self._target)
        except ConfigurationError as error:
            self._show(error)
            return
        except KeyboardInterrupt:
            self._signals += 1
            return
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        self._stop()
        if not self._signals:
            self._start()

    def _show(self, error: ConfigurationError) -> None:
        if self._log_format == "console":
            # As it would have ended the command: an entry has it all on one line.
            _log.error("not reloaded; mend this and save again")
            typer.echo(f"understudy: {error}", err=True)
        else:
            _log.error("not reloaded; mend this and save again", error=str(error))

    def _wake_ups(self) -> Iterator[bool]:
        """Yield a few times a second, and whether files may have changed meanwhile; end at a signal."""
        import watchfiles

        # It tells of every event; what of that matters is said by what changed.
        logging.getLogger("watchfiles").setLevel(logging.WARNING)
        while not self.is_set():
            directories = self._sources.directories()
            # What was saved before they were watched.
            looked_at = time.monotonic()
            yield True
            try:
                # Each by itself: what is below includes stores and environments, which are written to often.
                for changes in watchfiles.watch(
                    *directories,
                    recursive=False,
                    watch_filter=None,
                    step=STEP_MS,
                    debounce=GROUP_MS,
                    rust_timeout=TICK_MS,
                    yield_on_timeout=True,
                    stop_event=self,
                    ignore_permission_denied=True,
                ):
                    may_differ = bool(changes) or time.monotonic() - looked_at > LOOK_SECONDS
                    if may_differ:
                        looked_at = time.monotonic()
                    yield may_differ
                    if changes and self._sources.directories() != directories:
                        break
            except FileNotFoundError:  # a directory that has gone meanwhile
                continue
            except OSError as error:
                raise ConfigurationError(
                    f"--reload: the files can't be watched: {error}; "
                    "WATCHFILES_FORCE_POLLING=1 does without the kernel's help"
                ) from error
