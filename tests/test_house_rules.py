"""The house rules, as tests over the tree.

Each rule is a function from one file to its faults, so that it can be tried on a bad example written by hand: a rule
that finds nothing in its example does not count as kept. The layers are those of the design, section 6.
"""

import ast
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILE_LINES_MAX = 500
TEST_NAME_WORDS_MIN = 3

# What each room of the package may import, besides itself. "" is kvp2p/__init__.py and kvp2p/__main__.py.
GROUND = {"errors", "ids", "limits", "cluster_key", "replacement", "values"}
CORE = {"core", *GROUND}
WIRE = {"wire", *CORE}
SERVICES = {"runtime", "net", "store", "config", *WIRE}
PROCESSES = {"client", "supervisor", "node", "gateway", "api"}
MAY_IMPORT: dict[str, set[str]] = {
    **dict.fromkeys(GROUND, GROUND),
    # Each layer defines its own settings; config holds them all, so that no machine ever sees another one's, and so
    # no layer that config looks into imports config.
    "config": {"core.settings", "net.settings", *GROUND},
    "core": CORE,
    "wire": WIRE,
    # The drivers of runtime perform effects through links and the store; those two do not know who drives them.
    "runtime": SERVICES,
    "net": WIRE,
    "store": WIRE,
    **dict.fromkeys(PROCESSES, SERVICES),
    "cli": PROCESSES | SERVICES,
    "sim": WIRE | {"runtime", "store.memory", "store.layout"},
    "": {"cli", "store", *GROUND},
}
# Statuses and codes stand in one table, in the gateway: the api answers with the same ones.
MAY_IMPORT["api"] = MAY_IMPORT["api"] | {"gateway"}

# The core decides and does nothing else: no clock, no randomness of its own, no I/O, no logging.
NOT_IN_CORE = {
    *("asyncio", "cbor2", "concurrent", "datetime", "httptools", "httpx", "io", "lmdb", "logging", "multiprocessing"),
    *("os", "pathlib", "queue", "random", "secrets", "select", "selectors", "signal", "socket", "ssl", "structlog"),
    *("subprocess", "sys", "tempfile", "threading", "time", "trio", "trio_websocket", "uuid"),
}

# Put together from halves, so that this file does not break its own rule. Upper case only, as notes are written; three
# X in quotes are the currency code of ISO 4217 that stands for no currency.
NOTE_TO_SELF = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|HA" + r"CK|NotImplemented" + r"Error)\b|(?<![\w'\"])X" + r"XX\b")
LEFT_OUT_TEST = re.compile(r"\bpytest\.(mark\.)?(sk" + r"ip|xf" + r"ail)|\bimportorsk" + r"ip\b|\bunittest\.sk" + r"ip")
PLACE = re.compile(
    # A machine's own folders, at the start of a path (not inside an address or a relative path).
    r"(?<![\w.~*)}\]-])/(ro" + r"ot|wo" + r"rk|ho" + r"me|op" + r"t|Us" + r"ers)/\w"
    # Where packages come from is the user's business: options and addresses of an index.
    r"|(?<![\w-])--(extra-)?ind" + r"ex-url|(?<![\w-])--find-li" + r"nks|(?<![\w-])--trusted-ho" + r"st"
    r"|\bpypi\.or" + r"g|\bpythonhos" + r"ted\.org|/sim" + r"ple/"
)

# Methods that are async because a protocol of somebody else says so, whether or not they wait: trio's streams and
# channels, context managers, iterators. Other cases say so on the line of the def: `# async by protocol: whose`.
ASYNC_BY_PROTOCOL = {
    *("__aenter__", "__aexit__", "__anext__", "aclose", "receive", "receive_some", "send", "send_all", "send_eof"),
    "wait_send_all_might_not_block",
}
ASYNC_MARK = "# async by protocol: "

Rule = Callable[[str, str], Iterator[str]]


def room(path: str) -> str:
    """Return the package under kvp2p that a file belongs to: `core` for kvp2p/core/hlc.py, `ids` for kvp2p/ids.py."""
    parts = path.removesuffix(".py").split("/")[1:]
    return parts[0] if parts and parts[0] not in ("__init__", "__main__") else ""


def imported_modules(path: str, text: str) -> Iterator[tuple[int, str]]:
    """Yield line and full name of each import, `from` and relative ones and those inside functions too."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            start = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (start, node.module) if part)
            for alias in node.names:
                yield node.lineno, f"{module}.{alias.name}"


def import_outside_its_layer(path: str, text: str) -> Iterator[str]:
    """Find imports of rooms that lie above or beside, and what the core may not have."""
    if not path.startswith("kvp2p/"):
        return
    here = room(path)
    if here not in MAY_IMPORT:
        yield f"{path}: kvp2p/{here} has no place among the layers yet, see MAY_IMPORT"
        return
    for line, name in imported_modules(path, text):
        parts = name.split(".")
        if here == "core" and parts[0] in NOT_IN_CORE:
            yield f"{path}:{line}: the core imports {parts[0]}"
        there = parts[1] if parts[0] == "kvp2p" and len(parts) > 1 else here
        # `from kvp2p import __version__` asks for nothing of another layer.
        if there == here or there.startswith("__") or {there, ".".join(parts[1:3])} & MAY_IMPORT[here]:
            continue
        yield f"{path}:{line}: {here or 'kvp2p/__init__.py'} may not import {name}"


def file_too_long(path: str, text: str) -> Iterator[str]:
    """Find files of the package that hold more than one idea."""
    lines = len(text.splitlines())
    if path.startswith("kvp2p/") and lines > FILE_LINES_MAX:
        yield f"{path}: {lines} lines, at most {FILE_LINES_MAX}"


def note_or_left_out_test(path: str, text: str) -> Iterator[str]:
    """Find notes to self, functions without a body and tests that do not run."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := NOTE_TO_SELF.search(line) or LEFT_OUT_TEST.search(line):
            yield f"{path}:{number}: {found.group()}"


def module_without_docstring(path: str, text: str) -> Iterator[str]:
    """Find modules that do not say what they are."""
    if not ast.get_docstring(ast.parse(text)):
        yield f"{path}: no docstring"


def test_name_that_is_no_sentence(path: str, text: str) -> Iterator[str]:
    """Find tests whose names do not say what is true."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            words = [word for word in node.name.split("_")[1:] if word]
            if path.startswith("tests/") and len(words) < TEST_NAME_WORDS_MIN:
                yield f"{path}:{node.lineno}: {node.name}"


# pytest must not take the rule of this name for a test.
test_name_that_is_no_sentence.__test__ = False  # type: ignore[attr-defined]


def own_nodes(function: ast.AsyncFunctionDef) -> Iterator[ast.AST]:
    """Yield what stands in a function's body, without the bodies of the functions inside."""
    waiting: list[ast.AST] = list(function.body)
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            waiting.extend(ast.iter_child_nodes(node))


def is_declaration_only(function: ast.AsyncFunctionDef) -> bool:
    """Tell whether the body is a docstring, `...` or nothing else: a Protocol's or an abstract method."""
    return all(isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) for node in function.body)


def async_without_waiting(path: str, text: str) -> Iterator[str]:
    """Find functions that are async and never wait."""
    lines = text.splitlines()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.AsyncFunctionDef) or node.name in ASYNC_BY_PROTOCOL or is_declaration_only(node):
            continue
        if any(ASYNC_MARK in line for line in lines[node.lineno - 1 : node.body[0].lineno]):
            continue
        waits = (
            isinstance(inner, ast.Await | ast.AsyncFor | ast.AsyncWith)
            or (isinstance(inner, ast.comprehension) and inner.is_async)
            for inner in own_nodes(node)
        )
        if not any(waits):
            yield f"{path}:{node.lineno}: {node.name} is async and never waits"


def place_of_one_machine(path: str, text: str) -> Iterator[str]:
    """Find folders of the machine that a file was written on, and addresses of package indexes."""
    for number, line in enumerate(text.splitlines(), 1):
        if found := PLACE.search(line):
            yield f"{path}:{number}: {found.group()}"


PYTHON_RULES: list[Rule] = [
    import_outside_its_layer,
    file_too_long,
    note_or_left_out_test,
    module_without_docstring,
    test_name_that_is_no_sentence,
    async_without_waiting,
]


def project_files() -> list[str]:
    """Return the paths of all files that are, or are about to be, committed; in a tree without git, of all files."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        hidden = re.compile(r"(^|/)(\.git|\.venv|\.\w+_cache|\.hypothesis|__pycache__)(/|$)")
        names = [name for file in ROOT.rglob("*") if not hidden.search(name := file.relative_to(ROOT).as_posix())]
    return sorted(name for name in names if name and (ROOT / name).is_file())


def faults_in_tree(rule: Rule, *, python_only: bool) -> list[str]:
    """Apply a rule to every file it is about."""
    faults: list[str] = []
    for path in project_files():
        if python_only and not (path.endswith(".py") and path.startswith(("kvp2p/", "tests/", "scripts/"))):
            continue
        content = (ROOT / path).read_bytes()
        if b"\0" not in content:
            faults.extend(rule(path, content.decode()))
    return faults


@pytest.mark.parametrize("rule", PYTHON_RULES, ids=lambda rule: rule.__name__)
def test_python_files_keep_the_rule(rule: Rule) -> None:
    assert faults_in_tree(rule, python_only=True) == []


def test_no_file_names_a_place_of_one_machine() -> None:
    assert faults_in_tree(place_of_one_machine, python_only=False) == []


def test_shell_scripts_leave_no_notes() -> None:
    scripts = [path for path in project_files() if path.startswith(("scripts/", ".ci/"))]
    assert [fault for path in scripts for fault in note_or_left_out_test(path, (ROOT / path).read_text())] == []


def test_scripts_are_executable_and_lead_to_a_program() -> None:
    launchers = [path for path in project_files() if re.fullmatch(r"scripts/[a-z][a-z_]*|\.ci/run", path)]
    assert launchers
    for path in launchers:
        text = (ROOT / path).read_text()
        assert (ROOT / path).stat().st_mode & 0o111 == 0o111, f"{path} is not executable"
        assert text.startswith("#!/usr/bin/env bash\n"), f"{path} does not say who runs it"
        for program in re.findall(r"\$ROOT/(scripts/\w+\.py)", text):
            assert (ROOT / program).is_file(), f"{path} starts {program}, which is not there"


def test_the_tree_under_test_is_not_empty() -> None:
    paths = project_files()
    assert {"pyproject.toml", "kvp2p/__init__.py", "tests/test_house_rules.py", "scripts/check"} <= set(paths)


# Each rule, a file that breaks it and the number of faults in it; and a file that comes close and is right.
EXAMPLES: list[tuple[Rule, str, str, int]] = [
    (import_outside_its_layer, "kvp2p/core/a.py", "import time\nfrom os.path import join\n", 2),
    (import_outside_its_layer, "kvp2p/core/a.py", "def f():\n    from kvp2p.wire import cbor\n", 1),
    (import_outside_its_layer, "kvp2p/core/a.py", "from ..store import lmdb_store\nfrom .. import net\n", 2),
    (import_outside_its_layer, "kvp2p/core/a.py", "import struct\nfrom kvp2p.ids import Stamp\nfrom . import hlc\n", 0),
    (import_outside_its_layer, "kvp2p/store/a.py", "from kvp2p.net import links\n", 1),
    (import_outside_its_layer, "kvp2p/node/a.py", "from kvp2p import cli, sim\n", 2),
    (import_outside_its_layer, "kvp2p/node/a.py", "import trio\nfrom kvp2p import __version__, store\n", 0),
    (import_outside_its_layer, "kvp2p/sim/a.py", "from kvp2p.store import memory, lmdb_store\n", 1),
    (import_outside_its_layer, "kvp2p/sim/a.py", "from kvp2p.store.memory import MemoryStore\n", 0),
    (import_outside_its_layer, "kvp2p/net/a.py", "from kvp2p.config import NodeConfig\n", 1),
    (import_outside_its_layer, "kvp2p/config.py", "from kvp2p.net import settings, links\n", 1),
    (import_outside_its_layer, "kvp2p/limits.py", "from kvp2p.core import entry\n", 1),
    (import_outside_its_layer, "kvp2p/utils/a.py", "", 1),
    (file_too_long, "kvp2p/a.py", "pass\n" * (FILE_LINES_MAX + 1), 1),
    (file_too_long, "kvp2p/a.py", "pass\n" * FILE_LINES_MAX, 0),
    (note_or_left_out_test, "kvp2p/a.py", "# TO" + "DO: more\nraise NotImplemented" + "Error\n", 2),
    (note_or_left_out_test, "tests/a.py", "@pytest.mark.sk" + "ipif(True)\ndef f(): pytest.sk" + "ip()\n", 2),
    (note_or_left_out_test, "tests/a.py", "@pytest.mark.xf" + "ail\n# X" + "XX\n", 2),
    (note_or_left_out_test, "tests/a.py", "currency = 'X" + "XX'\nskip = todo_list\n", 0),
    (module_without_docstring, "kvp2p/a.py", "# A comment.\nimport ast\n", 1),
    (module_without_docstring, "kvp2p/a.py", '"""Say it."""\n', 0),
    (test_name_that_is_no_sentence, "tests/a.py", "class TestIt:\n    async def test_join(self): ...\n", 1),
    (test_name_that_is_no_sentence, "tests/a.py", "def test_join_is_commutative(): ...\n", 0),
    (async_without_waiting, "kvp2p/a.py", "async def f():\n    async def g():\n        await h()\n    return g\n", 1),
    (async_without_waiting, "kvp2p/a.py", "async def f():\n    return [x async for x in y]\n", 0),
    (async_without_waiting, "kvp2p/a.py", "async def f():\n    if a:\n        async with b: pass\n", 0),
    (async_without_waiting, "kvp2p/a.py", "class A:\n    async def aclose(self): self.x = 1\n", 0),
    (async_without_waiting, "kvp2p/a.py", "async def f() -> int:  " + ASYNC_MARK + "Starlette\n    return 1\n", 0),
    (async_without_waiting, "kvp2p/a.py", "class P(Protocol):\n    async def f(self) -> int: ...\n", 0),
    (place_of_one_machine, "a.md", "see /ho" + "me/me/x\npip install --ind" + "ex-url x\nhttps://pypi.or" + "g/\n", 3),
    (
        place_of_one_machine,
        "a.md",
        "kvp2p init --dir /var/lib/kvp2p, net/wo" + "rk/x, https://a.example/ho" + "me/x\n",
        0,
    ),
]


@pytest.mark.parametrize(("rule", "path", "text", "faults"), EXAMPLES)
def test_rule_finds_the_faults_of_its_example(rule: Rule, path: str, text: str, faults: int) -> None:
    assert len(list(rule(path, text))) == faults


def test_every_rule_has_an_example_that_breaks_it() -> None:
    broken = {rule for rule, _, _, faults in EXAMPLES if faults}
    assert broken == {*PYTHON_RULES, place_of_one_machine}
