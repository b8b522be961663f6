"""``python -m popjax``: the same as the command ``popjax``."""

import sys

from popjax.cli import jax_setup, main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.argv[:1] = ["-m", "popjax"]  # a command that can be typed again
    jax_setup.run_alone()
    raise SystemExit(main(arguments))
