"""``python -m popjax``: the same as the command ``popjax``."""

import sys

from popjax.cli import main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    sys.argv[:1] = ["-m", "popjax"]  # as it has to be typed to be repeated
    raise SystemExit(main(arguments))
