"""Dependencies point one way: read off the syntax trees, so that nothing has to be imported.

A module belongs to the layer of its first name below ``popjax``. It may import from lower layers, and from
its own package only where SHARED says so or where it is the package's ``__init__``.
"""

from __future__ import annotations

import ast
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent / "popjax"

LAYERS = (
    {
        "arguments",
        "core",
        "tree",
        "shuffle",
        "importing",
        "libraries",
        "version",
        "remember",
        "counting",
        "devices",
        "numerics",
        "kinds",
        "spelling",
    },
    {"checks", "contract"},
    {
        "nets",
        "recipe",
        "replay",
        "rollout",
        "normalize",
        "distillation",
        "envs",
        "optimize",
        "advantage",
        "distributions",
    },
    {"agents", "evolution", "intrinsic", "diversity"},
    {"population"},
    {"methods"},
)
ABOVE = {"host", "cli", "testing", "__main__"}
# The same for the parts of the host.
HOST_LAYERS = (
    {"errors"},
    {"paths", "numbers", "terminal", "garbage", "recipes"},
    {"scaling"},
    {"provenance"},
    {"checkpoints"},
    {"signals"},
    {"runs"},
    {"report"},
    {"training", "deploy"},
)
# The host sees a method through the record `Method`, whatever it is made of.
HIDDEN_FROM_HOST = {"agents", "evolution", "intrinsic", "population", "methods", "cli", "testing"}
# What the modules of a package may share: written once, used by all of them.
SHARED = {
    "popjax.core.agent",
    "popjax.core.env",
    "popjax.core.experience",
    "popjax.core.types",
    "popjax.agents.sac",
    "popjax.evolution.blocks",
    "popjax.evolution.ranking",
    "popjax.envs.dmc",
    "popjax.envs.dynamics",
    "popjax.envs.episodic",
    "popjax.envs.mujoco",
    "popjax.envs.options",
    "popjax.envs.raycast",
    "popjax.envs.warp",
    "popjax.envs._warp_frames",
    "popjax.envs.wrappers",
    "popjax.replay.packed",
    "popjax.envs.dmc.parts",
    "popjax.replay.ring",
    "popjax.replay.nstep",
    "popjax.nets.images",
    "popjax.population.clocks",
    "popjax.population.imitation",
    "popjax.population.learning",
    "popjax.population.policy",
    "popjax.population.tutoring",
    "popjax.nets.layers",
    "popjax.population.drives",
    "popjax.population.exchange",
    "popjax.population.lanes",
    "popjax.population.judging",
    "popjax.population.learners",
    "popjax.population.parts",
    "popjax.population.scoring",
}
# The one method that is another with other operators.
VARIANTS = {"erl": "pderl"}
# What puts the modules of its package together, as the package's `__init__` may.
ASSEMBLES = {"popjax.evolution.offspring"}
# Where an emulator runs beside the trainer, behind a pure function: the one corner below the host that does.
WORKERS = {"popjax.envs.atari.crew", "popjax.envs.atari.worker"}
# Where the flags of XLA are read, which are in the environment or a file that it names, and where libraries
# are imported whose import depends on variables of the environment.
FLAGGED = {"popjax.devices", "popjax.libraries"}
IMPURE = {"time", "os", "pathlib", "logging", "random", "orbax"}


def layer(name: str) -> int:
    """The layer of a first name below popjax.

    A new module must be given one here: that is a decision about the design.
    """
    for number, names in enumerate(LAYERS):
        if name in names:
            return number
    return len(LAYERS)


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str, path: Path) -> set[str]:
    """The dotted names that a module imports anywhere in it, functions and type checking included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
            # `from package import module` imports the module; any other name is the package's own.
            found |= {f"{base}.{a.name}" if f"{base}.{a.name}" in MODULES else base for a in node.names}
    return found


def method(module: str) -> str:
    """The method that a module is a part of, since NAME.py and NAME_*.py are one; "" for other modules."""
    name = module.removeprefix("popjax.methods.")
    if name == module:
        return ""
    whole = name.rpartition("_")[0]
    return whole if f"popjax.methods.{whole}" in MODULES else name


IMPORTS = {module: imports(module, path) for module, path in MODULES.items()}
BELOW_HOST = [m for m in MODULES if m != "popjax" and m.split(".")[1] not in ABOVE]


def first(module: str) -> str:
    return module.split(".")[1]


def inside(module: str) -> list[str]:
    """Return the modules of popjax that a module imports, but for the package's own re-exports."""
    return sorted(name for name in IMPORTS[module] if name.startswith("popjax."))


def test_every_module_has_a_layer():
    named = set().union(*LAYERS) | ABOVE
    assert {first(m) for m in MODULES if m != "popjax"} <= named, "give the new module a layer in LAYERS"


@pytest.mark.parametrize("module", [m for m in MODULES if m != "popjax"])
def test_nobody_imports_the_front_door(module):
    assert "popjax" not in IMPORTS[module], "import the module that defines the name, not popjax itself"


@pytest.mark.parametrize("module", BELOW_HOST)
def test_imports_point_down(module):
    wrong = [
        name
        for name in inside(module)
        if layer(first(name)) >= layer(first(module)) and first(name) != first(module)
    ]
    assert not wrong, f"{module} imports {wrong}, which is not below it"


@pytest.mark.parametrize("module", BELOW_HOST)
def test_siblings_do_not_import_each_other(module):
    if MODULES[module].name == "__init__.py" or module in ASSEMBLES:
        return
    own = module.rpartition(".")[0]  # the modules of a package within a package belong together
    wrong = [
        name
        for name in inside(module)
        if first(name) == first(module)
        and name not in SHARED
        and not (own.count(".") > 1 and name.startswith(own + "."))
        and not (method(name) and method(name) in (method(module), VARIANTS.get(method(module))))
    ]
    assert not wrong, f"{module} imports its siblings {wrong}"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("popjax.host.")])
def test_imports_within_the_host_point_down(module):
    number = {name: place for place, names in enumerate(HOST_LAYERS) for name in names}
    part = {name: name.split(".")[2] for name in [module, *inside(module)] if name.startswith("popjax.host.")}
    assert set(part.values()) <= number.keys(), "give the new part a layer in HOST_LAYERS"
    own = part[module]
    wrong = [name for name, other in part.items() if other != own and number[other] >= number[own]]
    assert not wrong, f"{module} imports {wrong}, which is not below it"


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("popjax.host.")])
def test_modules_of_the_host_import_each_other_in_no_circle(module):
    reached, left = set(), [module]
    while left:
        new = {name for name in inside(left.pop()) if name in MODULES and name not in reached}
        reached |= new
        left += new
    assert module not in reached


@pytest.mark.parametrize("module", [m for m in MODULES if m.startswith("popjax.host")])
def test_the_host_sees_no_methods(module):
    wrong = [name for name in inside(module) if first(name) in HIDDEN_FROM_HOST]
    assert not wrong, f"{module} imports {wrong}; the host knows only the record Method"


@pytest.mark.parametrize("module", [m for m in BELOW_HOST if m not in WORKERS | FLAGGED])
def test_the_core_knows_no_time_files_names_or_logs(module):
    wrong = {name for name in IMPORTS[module] if name.split(".")[0] in IMPURE}
    assert not wrong, f"{module} imports {wrong}, which is for the host"


@pytest.mark.parametrize("module", MODULES)
def test_only_nets_knows_flax_linen(module):
    tree = ast.parse(MODULES[module].read_text())
    names = IMPORTS[module] | {
        f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    layers = {n for n in names if n.startswith(("flax.linen", "flax.nnx"))}
    assert module.startswith("popjax.nets") or not layers


def test_the_walk_sees_every_form_of_import(tmp_path):
    """The tests above would pass on an empty set."""
    file = tmp_path / "pderl.py"
    file.write_text(
        "import os.path\nfrom popjax import tree, Env\nfrom ..replay import ring\nfrom . import unwritten\n"
        "def f():\n    import time\n    from popjax.envs.episodic import rescale\n"
    )
    outside = {"os.path", "time"}
    ours = {"popjax", "popjax.tree", "popjax.replay.ring", "popjax.methods", "popjax.envs.episodic"}
    assert imports("popjax.methods.pderl", file) == outside | ours


def test_importing_popjax_is_quick_and_starts_no_physics():
    """Processor time, so that a busy machine is no failure; the heavy libraries wait until they are used."""
    program = (
        "import sys, time\n"
        "import popjax\n"
        "heavy = ('brax', 'mujoco', 'gymnax', 'orbax', 'matplotlib', 'tensorboardX')\n"
        "print(time.process_time(), *(name for name in heavy if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, *loaded = done.stdout.split()
    assert loaded == []
    assert float(seconds) < 3
    assert done.stderr == ""


OPTIONAL = {"ale_py", "dm_control", "evosax", "gymnasium", "imageio", "imageio_ffmpeg", "mujoco_playground"}
OPTIONAL |= {"pandas", "wandb", "warp"}
DISTRIBUTIONS = {"PIL": "pillow", "jaxlib": "jax", "orbax": "orbax-checkpoint", "yaml": "pyyaml"}


def test_what_is_imported_is_declared():
    """What only another library brings may be gone with that library's next release."""
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["project"]
    declared = {Requirement(each).name for each in project["dependencies"]}
    names = {name.partition(".")[0] for module in MODULES for name in IMPORTS[module]}
    names -= sys.stdlib_module_names | OPTIONAL | {"popjax", "console"}  # a worker of Atari is a script
    assert {DISTRIBUTIONS.get(name, name) for name in names} <= declared
