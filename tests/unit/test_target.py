"""Targets: a user's module is imported in a process of its own, whatever it does there."""

from __future__ import annotations

import contextlib
import os
import re
import select
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from understudy.actors.errors import ConfigurationError
from understudy.runtime.target import inspect_target, load_app

APP = """
from understudy import Actor, App, Event, Stream, handles

class Placed(Event, subject="orders.placed"):
    region: str

class Shop(Actor):
    @handles
    async def placed(self, event: Placed) -> None: ...

app = App("shop", streams=[Stream("ORDERS", subjects=["orders.>"])], children=[Shop])
"""


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return tmp_path


def write(directory: Path, text: str, name: str = "user_app.py") -> None:
    (directory / name).write_text(textwrap.dedent(text), encoding="utf-8")


def problem(target: str, timeout_seconds: float = 30) -> str:
    with pytest.raises(ConfigurationError) as caught:
        inspect_target(target, timeout_seconds=timeout_seconds)
    return str(caught.value)


def test_the_app_is_described_without_being_imported_here(directory: Path) -> None:
    write(directory, APP)
    spec = inspect_target("user_app:app")
    assert (spec.name, [consumer.durable for consumer in spec.consumers]) == ("shop", ["shop-shop"])
    assert "user_app" not in sys.modules


def test_a_folder_called_as_the_package_hides_nothing(directory: Path) -> None:
    (directory / "understudy").mkdir()
    write(directory, "", "understudy/__init__.py")
    write(directory, APP)
    assert inspect_target("user_app:app").name == "shop"


def test_what_the_module_prints_disturbs_nothing(directory: Path, capfd: pytest.CaptureFixture[str]) -> None:
    noise = "import os, sys\nprint('loud')\nos.write(1, b'raw')\nsys.stderr.write('err')\n"
    write(directory, noise + APP)
    assert inspect_target("user_app:app").name == "shop"
    out, err = capfd.readouterr()
    assert out == ""
    assert "loud" in err
    assert "raw" in err


def test_what_the_module_leaves_running_neither_delays_nor_survives(directory: Path) -> None:
    left = """
        import subprocess, threading, time
        child = subprocess.Popen(["sleep", "60"])
        open("pid", "w").write(str(child.pid))
        threading.Thread(target=time.sleep, args=(60,)).start()
    """
    write(directory, textwrap.dedent(left) + APP)
    started = time.monotonic()
    assert inspect_target("user_app:app").name == "shop"
    assert time.monotonic() - started < 50
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(int((directory / "pid").read_text()))
        # Readable once it has ended, whoever reaps it.
        assert select.select([process], [], [], 50)[0]
        os.close(process)


def test_a_killed_launcher_takes_the_import_along(directory: Path) -> None:
    """A module that never ends would otherwise run on, with nobody to end it."""
    write(directory, "import os, time\nopen('pid', 'w').write(str(os.getpid()))\ntime.sleep(60)\n")
    launcher = subprocess.Popen(
        [
            *(sys.executable, "-c"),
            "from understudy.runtime.target import inspect_target; inspect_target('user_app:app')",
        ]
    )
    path, deadline = directory / "pid", time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process = os.pidfd_open(int(path.read_text()))
    launcher.kill()
    launcher.wait()
    assert select.select([process], [], [], 50)[0]
    os.close(process)


@pytest.mark.parametrize(
    ("target", "hint"),
    [
        ("user_app", "write it as in flights:app"),
        ("user_app:", "write it as in flights:app"),
        (":app", "write it as in flights:app"),
        ("user-app:app", "write it as in flights:app"),
        ("shop/user_app.py:app", "write shop.user_app:app"),
        ("user_app.py", "write user_app:app"),
    ],
)
def test_a_target_is_a_module_and_an_attribute(target: str, hint: str) -> None:
    assert problem(target) == f"target {target!r} is not module:attribute; {hint}"


def test_a_missing_module_is_named_with_where_it_was_looked_for(directory: Path) -> None:
    assert problem("nowhere.to.find:app") == (
        f"target 'nowhere.to.find:app': there is no module 'nowhere' in {directory} nor among the installed "
        f"packages; change to its directory, or install it"
    )


def test_a_module_that_raises_shows_where(directory: Path) -> None:
    write(directory, "def fail():\n    raise ValueError('no luck')\n\nfail()\n")
    text = problem("user_app:app")
    # Python 3.13 underlines the call.
    assert re.sub(r"\n +~+\^+(?=\n)", "", text) == (
        "target 'user_app:app': its module raised when it was imported:\n"
        f'  File "{directory}/user_app.py", line 4, in <module>\n'
        "    fail()\n"
        f'  File "{directory}/user_app.py", line 2, in fail\n'
        "    raise ValueError('no luck')\n"
        "ValueError: no luck"
    )


def test_a_module_that_misses_another_shows_where(directory: Path) -> None:
    write(directory, "import not_installed\n")
    assert problem("user_app:app") == (
        "target 'user_app:app': its module raised when it was imported:\n"
        f'  File "{directory}/user_app.py", line 1, in <module>\n'
        "    import not_installed\n"
        "ModuleNotFoundError: No module named 'not_installed'"
    )


def test_a_wrong_declaration_is_told_in_its_own_words_with_its_line(directory: Path) -> None:
    text = APP.replace('App("shop"', 'App("my shop"')
    write(directory, text)
    line = next(number for number, line in enumerate(text.splitlines(), 1) if "my shop" in line)
    assert problem("user_app:app") == (
        "App: the name is 'my shop'; use 1 to 64 of the characters A-Z, a-z, 0-9, '_' and '-'\n"
        f'  File "{directory}/user_app.py", line {line}'
    )
    write(directory, "from understudy import Mailbox\n\nbox = Mailbox(capcity=3)\n")
    assert problem("user_app:app") == (
        "Mailbox: unknown option 'capcity'; did you mean 'capacity'?\n"
        f'  File "{directory}/user_app.py", line 3'
    )


def test_a_misspelt_attribute_has_the_nearest_app_named(directory: Path) -> None:
    write(directory, APP)
    assert problem("user_app:ap") == (
        "target 'user_app:ap': the module 'user_app' has no 'ap'; did you mean 'app'?"
    )
    write(directory, "x = 1\n", "without.py")
    assert problem("without:app") == (
        "target 'without:app': the module 'without' has no 'app'; it has no App at all"
    )


def test_what_is_no_app_is_named(directory: Path) -> None:
    write(directory, "app = 3\nclass Shop: pass\n")
    assert problem("user_app:app") == (
        "target 'user_app:app' is a value of type int, not an App; make one with App(…)"
    )
    assert problem("user_app:Shop") == (
        "target 'user_app:Shop' is the class Shop, not an App; make one with App(…)"
    )


def test_a_module_that_exits_is_told_how_not_to(directory: Path) -> None:
    write(directory, "import sys\nsys.exit(0)\n")
    assert problem("user_app:app") == (
        "target 'user_app:app': the module ended by sys.exit(0) when it was imported; "
        "put that under if __name__ == '__main__':"
    )


@pytest.mark.parametrize("code", ["'give me DATABASE_URL'", "1"])
def test_a_module_that_exits_for_a_reason_may_be_right(directory: Path, code: str) -> None:
    write(directory, f"import sys\nsys.exit({code})\n")
    assert problem("user_app:app") == (
        f"target 'user_app:app': the module ended by sys.exit({code}) when it was imported; "
        "mend what it complains of, or put that under if __name__ == '__main__':"
    )


@pytest.mark.parametrize(
    ("end", "text"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "its process was killed by SIGSEGV"),
        ("os.kill(os.getpid(), 40)", "its process was killed by signal 40"),
        ("os._exit(7)", "its process ended with status 7"),
        ("os._exit(0)", "its process ended with status 0"),
    ],
)
def test_a_module_that_ends_its_process_is_reported(directory: Path, end: str, text: str) -> None:
    write(directory, f"import os, signal\n{end}\n")
    assert problem("user_app:app") == f"target 'user_app:app': {text} while its module was imported"


def test_a_module_that_takes_too_long_is_stopped(directory: Path) -> None:
    write(directory, "import time\ntime.sleep(60)\n")
    assert problem("user_app:app", timeout_seconds=0.5) == (
        "target 'user_app:app': its module was not imported within 0.5 s; move what takes long into on_start"
    )


def test_a_cell_loads_the_app_itself(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(directory, APP, "cell_app.py")
    monkeypatch.delitem(sys.modules, "cell_app", raising=False)
    assert load_app("cell_app:app").child("shop").make().__understudy__.name == "shop"
