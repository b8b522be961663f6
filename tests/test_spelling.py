"""Names that were meant by unknown ones."""

import subprocess
import sys

from popjax.spelling import nearest


def test_the_nearest_name_is_found_whatever_its_case():
    known = ["CartPole-v1", "Pendulum-v1"]
    assert nearest("pendlum-V1", known) == "; did you mean Pendulum-v1?"
    assert nearest("pendlum-V1", known, quoted=True) == "; did you mean 'Pendulum-v1'?"
    assert nearest("x", known) == "; choose from CartPole-v1, Pendulum-v1"
    assert nearest("x", []) == ""


def test_a_misspelt_command_is_told_without_jax():
    """Its settings may be what JAX rejects when it is imported."""
    program = (
        "import sys, popjax.cli; code = popjax.cli.main(['trian']); sys.exit(code + ('jax' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: unknown command 'trian'; did you mean train?\n")
