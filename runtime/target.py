"""From TARGET, `module:attribute`, to the app.

The launcher must not import the user's module: what it opened or started would be forked into every cell. So
`inspect_target` has a short-lived child import it and takes the specs over as plain values. Cells, which
are forked anyway, use `load_app`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import ModuleType

import msgspec

from understudy.actors.errors import ConfigurationError, DeclarationError
from understudy.actors.names import nearest
from understudy.runtime.app import App
from understudy.runtime.lifeline import die_with_us
from understudy.runtime.specs import AppSpec

TIMEOUT_SECONDS = 60.0
# Enough to see where in the user's own code it was.
_TRACEBACK_FRAMES = 3


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    # What the child leaves: the spec, or what was wrong.
    spec: AppSpec | None = None
    problem: str = ""


def inspect_target(target: str, *, timeout_seconds: float = TIMEOUT_SECONDS) -> AppSpec:
    """Returns what the app of `target` declares, without importing it here; ConfigurationError says why not.

    The module runs in a process of its own: it may print (to stderr), exit, crash or hang.
    """
    _split(target)
    with tempfile.TemporaryFile() as answer_file:
        # A file and not a pipe: nothing can block on it, and a process that the module leaves behind can't
        # hold it open.
        # -P: this package itself must not be looked for in the user's directory.
        arguments = [target, str(answer_file.fileno())]
        command = [sys.executable, "-P", "-m", __spec__.name, *arguments]
        status = _run(command, answer_file.fileno(), target, timeout_seconds)
        answer_file.seek(0)
        body = answer_file.read()
    if not body:
        raise ConfigurationError(f"target {target!r}: {_describe_end(status)} while its module was imported")
    try:
        answer = msgspec.msgpack.decode(body, type=_Answer)
    except msgspec.DecodeError as error:
        raise ConfigurationError(
            f"target {target!r}: its process left an unreadable answer: {error}"
        ) from error
    if answer.spec is None:
        raise ConfigurationError(answer.problem)
    return answer.spec


def load_app(target: str) -> App:
    """Imports the app of `target` into this process; ConfigurationError says why that failed."""
    module_name, attribute = _split(target)
    # As `python -m` does: the user's module stands in the working directory.
    directory = str(Path.cwd())
    if directory not in sys.path and "" not in sys.path:
        sys.path.insert(0, directory)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(_describe_raised(target, error)) from error
        raise ConfigurationError(
            f"target {target!r}: there is no module {error.name!r} in {directory} nor among the installed "
            f"packages; change to its directory, or install it"
        ) from error
    except DeclarationError as error:
        raise ConfigurationError(f"{error}{_where(error)}") from error
    except SystemExit as error:
        raise ConfigurationError(
            f"target {target!r}: the module ended by sys.exit({error.code!r}) when it was imported; "
            f"{_remedy(error)}"
        ) from error
    except Exception as error:
        raise ConfigurationError(_describe_raised(target, error)) from error
    return _find_app(target, module, attribute)


def _split(target: str) -> tuple[str, str]:
    module, _, attribute = target.partition(":")
    if module.endswith(".py") or "/" in module:
        dotted = module.removesuffix(".py").strip("./").replace("/", ".")
        hint = f"; write {dotted}:{attribute or 'app'}"
    else:
        hint = "; write it as in flights:app"
    parts = [attribute, *module.split(".")]
    if module.endswith(".py") or not all(part.isidentifier() for part in parts):
        raise ConfigurationError(f"target {target!r} is not module:attribute{hint}")
    return module, attribute


def _find_app(target: str, module: ModuleType, attribute: str) -> App:
    try:
        app = getattr(module, attribute)
    except AttributeError as error:
        apps = [name for name, value in vars(module).items() if isinstance(value, App)]
        hint = nearest(attribute, apps) or "; it has no App at all"
        raise ConfigurationError(
            f"target {target!r}: the module {module.__name__!r} has no {attribute!r}{hint}"
        ) from error
    if not isinstance(app, App):
        kind = app.__qualname__ if isinstance(app, type) else type(app).__qualname__
        article = "the class" if isinstance(app, type) else "a value of type"
        raise ConfigurationError(f"target {target!r} is {article} {kind}, not an App; make one with App(…)")
    return app


def _where(error: DeclarationError) -> str:
    """The user's line that declares it, on a line of its own; nothing if there is none."""
    package = f"{Path(__file__).parents[1]}{os.sep}"
    for frame in reversed(_frames(error)):
        if not frame.filename.startswith(package):
            return f'\n  File "{frame.filename}", line {frame.lineno}'
    return ""


def _frames(error: Exception) -> list[traceback.FrameSummary]:
    """Where an import has raised, but for this file and the import machinery, which say nothing to a user."""
    return [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename not in (__file__, importlib.__file__) and not frame.filename.startswith("<frozen")
    ]


def _describe_raised(target: str, error: Exception) -> str:
    frames = _frames(error)
    lines = traceback.format_list(frames[-_TRACEBACK_FRAMES:]) + traceback.format_exception_only(error)
    return f"target {target!r}: its module raised when it was imported:\n{''.join(lines).rstrip()}"


def _remedy(end: SystemExit) -> str:
    script = "put that under if __name__ == '__main__':"
    # A text or another number than 0 says that something is missing or wrong.
    return f"mend what it complains of, or {script}" if end.code else script


def _run(command: list[str], answer: int, target: str, timeout_seconds: float) -> int:
    # What the module prints goes to stderr: stdout is for the launcher's data. A session of its own, so that
    # what it starts can be killed with it.
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=(answer,),
        start_new_session=True,
        preexec_fn=die_with_us(),  # noqa: PLW1509 - nothing of ours has started a thread yet
    )
    try:
        return process.wait(timeout_seconds)
    except subprocess.TimeoutExpired as error:
        raise ConfigurationError(
            f"target {target!r}: its module was not imported within {timeout_seconds:g} s; "
            f"move what takes long into on_start"
        ) from error
    finally:
        # Also what the module has left running, and the child itself after a timeout or Ctrl-C.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _describe_end(status: int) -> str:
    if status >= 0:
        return f"its process ended with status {status}"
    # Real-time signals have numbers only.
    names = {int(one): one.name for one in signal.Signals}
    return f"its process was killed by {names.get(-status, f'signal {-status}')}"


def _answer(target: str) -> _Answer:
    try:
        return _Answer(spec=load_app(target).spec())
    except ConfigurationError as error:
        return _Answer(problem=str(error))


def main(target: str, answer: int) -> None:
    """Runs in the child: leaves the answer in the file of descriptor `answer`."""
    # Not for the processes that the module starts.
    os.set_inheritable(answer, False)
    body = msgspec.msgpack.encode(_answer(target))
    os.pwrite(answer, body, 0)
    sys.stdout.flush()
    sys.stderr.flush()
    # No exit handlers and no waiting for threads: the module was only to be imported.
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
