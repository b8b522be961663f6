from popjax.cli import report

raise SystemExit(report())
