from popjax.cli import evaluate

raise SystemExit(evaluate())
