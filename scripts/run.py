from popjax.cli import run

raise SystemExit(run())
