from popjax.cli import export

raise SystemExit(export())
