import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # use this checkout, installed or not
from popjax.cli import report

raise SystemExit(report())
