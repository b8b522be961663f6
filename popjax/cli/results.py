"""Commands on finished runs: evaluation, reports and export of policies."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from popjax import envs
from popjax.cli import building, jax_setup, parse, show
from popjax.cli.building import Loaded
from popjax.envs import wrappers
from popjax.host import paths
from popjax.host.deploy import chosen_policy, export_policy, reference_envs
from popjax.host.errors import Refused
from popjax.host.report import report as write
from popjax.host.terminal import complain
from popjax.host.training import evaluate as evaluate_state


def evaluate(argv: list[str]) -> None:
    """Evaluate, as ``scripts/evaluate.py``."""
    arguments = parse.parse(parse.EvaluateArguments, argv, program="popjax evaluate")
    jax_setup.prepare_jax()
    jax_setup.require_backend()

    if arguments.stochastic and (arguments.in_ or arguments.video):
        option = "--in" if arguments.in_ else "--video"
        raise Refused(f"{option} shows policies that act greedily: leave out --stochastic")
    root = paths.path(arguments.run_dir)
    run = under(_loaded(arguments), arguments.env_option)
    transfer, film = _transfer(arguments, run), _film(arguments, run)  # refuse before anything is played
    here = show.Played(
        *evaluate_state(
            run.method,
            run.env,
            run.state,
            episodes=arguments.episodes,
            seed=arguments.seed,
            members=[member.number for member in run.members],
            stochastic=arguments.stochastic,
        )
    )
    there = transfer() if transfer else None
    video = film() if film else None
    if arguments.json:
        show.evaluation_json(root, run, here, there, video)
        return
    show.evaluation(run, here)
    if there:
        show.transfer(run, here, there)
    if video:
        show.film(video)


def _transfer(arguments: Any, run: Loaded) -> Callable[[], Any] | None:
    """Return the function that plays the policies in the original environment, for ``--in``."""
    library = arguments.in_
    if library is None:
        return None
    _refuse_wrapped(run, "--in")
    if _task_options(run) is None:
        complain(
            f"--in plays {run.env.spec.name} as {library} has it, without what {run.saved['env']} changes"
        )
    copies = [reference_envs.make(library, run.env, _options(run)) for _ in range(arguments.episodes)]
    return lambda: show.Played(
        *reference_envs.evaluate(run.method, copies, run.state, seed=arguments.seed), library
    )


def _options(run: Loaded) -> dict[str, Any]:
    """Return the options that decide what a policy sees of the suite's task; none if the environment is the
    user's own."""
    return _task_options(run) or {}


def _task_options(run: Loaded) -> dict[str, Any] | None:
    """Return the options that decide what a policy sees of the suite's task, even if a user's function made
    it; None if the environment is the user's own."""
    if run.saved["env"] == run.env.spec.name:
        return wrappers.seen(run.saved["env_options"])
    # Options that change only rewards leave the unchanged task in ``scored``.
    for env in (run.env, run.env.scored):
        made = env and envs.origin(env)
        if made and made.name == run.env.spec.name:
            return wrappers.seen(json.loads(made.options))
    return None


def _refuse_wrapped(run: Loaded, option: str) -> None:
    """Refuse an option that needs the plain task if the policy was trained with other observations or
    actions."""
    changed = {**wrappers.seen(run.saved["env_options"]), **_options(run)}
    if names := sorted(wrappers.OPTIONS.keys() & changed.keys()):
        raise Refused(f"{option} plays the task without the run's {', '.join(names)}: leave out {option}")


def _film(arguments: Any, run: Loaded) -> Callable[[], dict[str, Any]] | None:
    """Return the function that films an episode of the first member and describes it, for ``--video``."""
    if arguments.video is None:
        return None
    try:
        from popjax.host.deploy import video  # it loads MuJoCo
    except ValueError as refusal:
        raise Refused(f"--video: {refusal}") from None

    _refuse_wrapped(run, "--video")
    path = paths.path(arguments.video)
    subject = video.subject(run.env, _options(run), path)

    def film() -> dict[str, Any]:
        shown = video.record(run.method, run.env, run.state, subject, path, seed=arguments.seed)
        episode = {"return": shown.total, "length": shown.length, "frames_per_second": shown.fps}
        return {"file": str(path), "seed": run.members[0].seed, **episode}

    return film


def report(argv: list[str]) -> None:
    """Write a report, as ``scripts/report.py``."""
    arguments = parse.parse(parse.ReportArguments, argv, program="popjax report")
    judged = (arguments.measure, arguments.statistic)
    show.report(write(arguments.run_dirs, arguments.out, arguments.labels, arguments.csv, *judged))


def export(argv: list[str]) -> None:
    """Export a policy, as ``scripts/export.py``."""
    arguments = parse.parse(parse.ExportArguments, argv, program="popjax export")
    jax_setup.prepare_jax()
    jax_setup.require_backend()

    run = _loaded(arguments)
    (member,), (steps,) = run.members, run.env_steps
    origin = {
        "method": run.saved["method"],
        "individual": run.individual,
        "env_options": {**wrappers.seen(run.saved["env_options"]), **_options(run)},
        "git_commit": run.saved.get("git_commit"),
        "member": member.number,
        "seed": member.seed,
        **member.numbers,
        "env_steps": int(steps),
    }
    reason = export_policy(run.method, run.env, run.state, arguments.out, origin)
    show.exported(arguments.out, reason)


def _loaded(arguments: Any) -> Loaded:
    """Return the run that the command line names, with the policies that it selects."""
    if arguments.individual is not None and arguments.checkpoint == chosen_policy.BEST:
        raise Refused("--checkpoint best has the policy that the method chose, no individuals: leave one out")
    run = building.load(arguments.run_dir, arguments.member, arguments.checkpoint)
    return alone(run, arguments.individual)


def under(run: Loaded, pairs: Sequence[str]) -> Loaded:
    """Return the run with other options of its environment, for ``--env-option``.

    Raises:
        Refused: observations or actions would have another shape.
    """
    if not pairs:
        return run
    options = run.saved["env_options"] | parse.key_values(pairs)
    env = building.make_env(run.saved["env"], options)
    for name in ("obs_shape", "obs_dtype", "action_dim", "discrete"):
        before, now = getattr(run.env.spec, name), getattr(env.spec, name)
        if before != now:
            raise Refused(f"--env-option changes {name} to {now}, but the policy needs {before}")
    return run._replace(env=env, saved=run.saved | {"env_options": options})


def alone(run: Loaded, individual: int | None) -> Loaded:
    """Return the run with the policy of one individual, for ``--individual``."""
    if individual is None:
        return run
    method = chosen_policy.individual(run.method, run.state, individual)
    return run._replace(method=method, individual=individual)
