"""The run directory: its files, its lock and its configuration.

config.json     method, environment, every option and hyperparameter, versions, device, commit
metrics.jsonl   one line per recorded generation and member: its number, seed and swept hyperparameters
eval.jsonl      one line per evaluation and member
checkpoints/    the newest States
best.npz        each member's policy with the highest return in an evaluation
tensorboard/    scalars, one run per member
curve.png       learning curve, at the end; curves/SETTING.png for swept hyperparameters
summary.json    results, at the end, with a row per member that includes its last metrics
schedule.json   lineage and hyperparameters, at the end, for a method that changes hyperparameters
lock            empty; held while the run is trained

A sweep of several programs has one such directory for each, inside the one that ``run_group`` describes.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from popjax.host.errors import NoRun, Refused
from popjax.host.numbers import equal, plain
from popjax.host.paths import file_name, replacing
from popjax.host.recipes import recipe
from popjax.host.runs.options import option_name
from popjax.host.scaling import processes, sweep
from popjax.host.terminal import complain
from popjax.recipe import defaults

_COMPARED = (
    "method",
    "agents",
    "env",
    "env_options",
    "envs",
    "config",
    "hyper",
    "options",
    "sweep",
    "members",
    "jax",
)
_DECISIVE = ("options.env_steps", "options.seed", "options.seeds")
"""Options of the host that past results depend on; the others may change when a run is resumed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, 524)
"""Errors of file systems without locks of one kind; 524 is Linux's own ENOTSUPP, which NFS may return."""
FAILED = ("failed", "frozen")
"""Values of a failed member's status in ``summary.json``, current and earlier."""


T = TypeVar("T")


class RunDirectory:
    """The paths of one run, or the index of a directory of runs."""

    def __init__(self, root: Path):
        self.root = root
        self.config = root / "config.json"
        self.metrics = root / "metrics.jsonl"
        self.evaluations = root / "eval.jsonl"
        self.checkpoints = root / "checkpoints"
        self.best = root / "best.npz"
        self.tensorboard = root / "tensorboard"
        self.summary = root / "summary.json"
        self.schedule = root / "schedule.json"
        self.lock = root / "lock"
        self.index = root / "index.json"

    def curve(self, setting: str = "") -> Path:
        """Return the path of the learning curve, or of that for one setting of swept hyperparameters."""
        return self.root / "curves" / f"{file_name(setting)}.png" if setting else self.root / "curve.png"

    @property
    def contents(self) -> tuple[Path, ...]:
        """Return the files of a run. ``config.json`` is last: without it, a directory is not a run. ``lock``,
        which ``clear`` removes last, is first."""
        records = self.metrics, self.evaluations, self.checkpoints, self.best, self.tensorboard
        return (self.lock, *records, self.summary, self.schedule, self.config)

    def holds_a_run(self) -> bool:
        """Return whether the directory has any file of a run, or the index of a directory of runs.

        A ``lock`` alone is that of a run which was killed before it began.
        """
        return any(path.exists() for path in (self.index, *self.contents) if path != self.lock)

    def clear(self) -> None:
        """Remove the files of a run, and the directory if it is then empty."""
        for path in reversed(self.contents):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        with suppress(OSError):
            self.root.rmdir()


@contextmanager
def opened(root: Path, config: dict[str, Any], resume: bool) -> Iterator[RunDirectory]:
    """Provide the directory of a run that starts or continues, locked against other processes.

    When a run continues, ``config.json`` keeps its old content until ``write_config`` is called.

    Raises:
        Refused: the directory already holds a run and ``resume`` is false, the run has a different
            configuration, or another process is writing to it.
    """
    files = RunDirectory(root)
    check(root, config, resume)
    processes.together(lambda: root.mkdir(parents=True, exist_ok=True))
    with ExitStack() as stack:

        def own() -> None:
            stack.enter_context(_locked(files))
            _check(root, config, resume)  # another process may have ended a run here before it was locked
            if not resume:
                write_config(files, config)

        processes.together(own)
        yield files


def in_recorded_order(root: Path, swept: Mapping[str, T]) -> dict[str, T]:
    """Return ``swept`` with its names in the order in which a run in ``root`` recorded them, if there is one.

    The names of members, by which TensorBoard and W&B know them, depend on this order.
    """
    recorded: Mapping[str, Any] = {}
    with suppress(NoRun, Refused):
        recorded = read_config(root).get("sweep") or {}
    names = [name for name in recorded if name in swept]
    return {name: swept[name] for name in (*names, *(name for name in swept if name not in names))}


def write_config(files: RunDirectory, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, keeping the id of the run and the entry that says how it began."""
    old = read_config(files.root) if files.config.exists() else {}
    begun = {"begun": old["begun"]} if old.get("begun") else {}
    write_json(files.config, {"id": identity(files.config), **begun, **config})


def check(root: Path, config: dict[str, Any], resume: bool) -> None:
    """Check that ``config`` may be run in ``root``, without writing. Raises as ``opened`` does."""
    processes.together(lambda: _check(root, config, resume))


def _check(root: Path, config: dict[str, Any], resume: bool) -> None:
    files = RunDirectory(root)
    if root.exists() and not root.is_dir():
        raise Refused(f"{root} is not a directory")
    if not resume:
        if files.holds_a_run():
            raise Refused(
                f"{root} already holds a run: add --resume to continue it, or name another --run-dir"
            )
        return
    before = read_config(root)
    free = _free(before, config)
    different = [line for name, line in differences(before, config) if not free(name)]
    if different:
        raise Refused(
            f"{root} was run with other options: {'; '.join(different)} (old -> new); continue it"
            " with the old ones, or name another --run-dir"
        )


def begun(root: Path) -> bool:
    """Return whether ``root`` holds a run or runs, as seen by the first process."""
    return bool(processes.largest(int(processes.first() and RunDirectory(root).holds_a_run())))


def changed(root: Path, config: Mapping[str, Any]) -> list[str]:
    """Return 'option old -> new' for every permitted change since the run was last started, 'option is new:
    default' for every option that popjax has gained since, and 'package old -> new' or 'device old -> new'
    for changed versions and devices, which may change results."""
    before = read_config(root)
    free = _free(before, config)
    old, new = (facts.get("versions", {}) | {"device": facts.get("device")} for facts in (before, config))
    found = [line for name, line in differences(before, config) if free(name)]
    budget, larger = before["options"]["env_steps"], config["options"]["env_steps"]
    found += [f"--env-steps {budget} -> {larger}"] if larger > budget else []
    found += [f"{_option(name)} is new: {value}" for name, value in _gained(before, config).items()]
    return found + [
        f"{name} {old[name]} -> {new[name]}" for name in new if old.get(name) not in (None, new[name])
    ]


def _free(before: Mapping[str, Any], config: Mapping[str, Any]) -> Callable[[str], bool]:
    """Return a function that tells, by name, whether an option may change without affecting past results."""
    larger = _members(before) <= _members(config)

    def free(name: str) -> bool:
        of_members = name in ("options.seed", "options.seeds", "members") or name.startswith("sweep")
        return (larger and of_members) or (name.startswith("options.") and name not in _DECISIVE)

    return free


def _members(config: Mapping[str, Any]) -> set[str]:
    return {member.identity for member in sweep.of_config(config)}


def read_config(root: Path) -> dict[str, Any]:
    """Return the content of ``config.json`` of a run.

    Raises:
        NoRun: there is no such file.
        Refused: the file cannot be read.
    """
    path = RunDirectory(root).config
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise NoRun(f"{root} holds no run (there is no {path})") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{path} cannot be read: {error}") from None


def read_summary(root: Path) -> dict[str, Any] | None:
    """Return the content of ``summary.json`` of a run; None if there is no such file yet.

    Raises:
        Refused: the file cannot be read.
    """
    path = RunDirectory(root).summary
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Refused(f"{path} is not JSON: remove it, and popjax train --resume writes it again") from None


def failed(summary: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """Return the rows of the failed members in the content of ``summary.json``."""
    return tuple(row for row in summary.get("members", []) if row["status"] in FAILED)


def identity(path: Path) -> str:
    """Return the id in a JSON file, or a new one; it is independent of paths."""
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError):
        return uuid.uuid4().hex


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (name, 'option old -> new') for every difference between two configurations.

    A larger budget of environment steps is not a difference, since it continues the same run. An option of
    the method that was unknown when ``old`` was recorded had its default. Versions, device and commit are not
    options; settings of JAX were not recorded in early runs. Floats are compared in float32, the precision of
    training.
    """
    compared = [key for key in _COMPARED if key != "jax" or (key in old and key in new)]
    flat_old, flat_new = (dict(flattened(plain({k: c.get(k) for k in compared}))) for c in (old, new))
    flat_old |= _gained(old, new)
    for name in sorted(flat_old.keys() | flat_new.keys()):
        before, after = flat_old.get(name), flat_new.get(name)
        if equal(before, after) or (name == "options.env_steps" and _larger(after, before)):
            continue
        yield name, f"{_option(name)} {_spell(before)} -> {_spell(after)}"


def _gained(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and default of every entry of ``config`` and ``hyper`` that only ``new`` has, if both
    configurations are of one method with agents of the same kinds."""
    flat_old, flat_new = (
        dict(flattened({key: facts.get(key) for key in ("config", "hyper")})) for facts in (old, new)
    )
    missing = flat_new.keys() - flat_old.keys()
    if not (missing and new.get("config") and all(old.get(k) == new.get(k) for k in ("method", "agents"))):
        return {}
    found = default_options(new)
    return {name: found[name] for name in sorted(missing & found.keys())}


def default_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and default of every entry of ``config`` and ``hyper`` that the method of a configuration
    has for agents of its kinds."""
    own, hyper = defaults(recipe(config["method"]), config["agents"])
    return dict(flattened(plain({"config": asdict(own), "hyper": asdict(hyper)})))


def _option(name: str) -> str:
    """Return the option, or the setting of JAX, of an entry of ``config.json``."""
    section, _, rest = name.partition(".")
    if section == "jax":
        return rest
    if section == "agents":
        return option_name(f"config.{rest}")
    return option_name(rest if section in ("options", "envs") else name)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace ``path`` in one step: a reader sees the old or the new content, never half of it."""
    with replacing(path) as partial:
        partial.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")


def flattened(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every option in nested dictionaries by its dotted name."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from flattened(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _larger(new: Any, old: Any) -> bool:
    return isinstance(new, int) and isinstance(old, int) and new > old


def _spell(value: Any) -> str:
    return "unset" if value in (None, "") else str(value)


@contextmanager
def _locked(files: RunDirectory) -> Iterator[None]:
    """Hold the locks of a run; the operating system releases them even if the process is killed.

    The lock of the directory keeps out all others on this machine, also threads of this process. Where a
    network file system keeps it from other machines, they see the POSIX lock of the file ``lock``. A process
    that closes any descriptor of that file loses it, so nothing else opens the file. A file system may have
    locks of one kind alone, or of neither, which is told.
    """
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return

    def locked(path: Path, flags: int, how: Callable[[int, int], Any]) -> bool:
        handle = os.open(path, flags, 0o666)
        stack.callback(os.close, handle)
        try:
            how(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Refused(f"another process is training in {files.root}") from None
        except OSError as error:
            if error.errno in _NO_LOCKS:
                return False
            raise Refused(
                f"{path} cannot be locked ({error.strerror}): try again, or name another --run-dir"
            ) from error
        return True

    with ExitStack() as stack:
        held = [
            locked(files.root, os.O_RDONLY, fcntl.flock),
            locked(files.lock, os.O_RDWR | os.O_CREAT, fcntl.lockf),
        ]
        if not any(held):
            complain(
                f"{files.root} is not locked, since its file system has no locks: let only one process train"
                " in it"
            )
        yield
