"""The file of each member's best policy: the one with the highest mean return in an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from popjax.host.checkpoints import io_errors, state_arrays
from popjax.host.errors import NotSaved, Refused
from popjax.host.paths import replacing
from popjax.host.runs.history import Evaluation
from popjax.host.scaling import processes
from popjax.host.scaling.sweep import Member

_FACTS = ("member", "number", "env_steps", "return")
"""Arrays [S] beside the policies: each member's identity and number, and its best evaluation."""


class Best:
    """The best policies so far of ``members`` [S], kept on the host and saved to ``path``.

    ``policies`` returns the parameters [S, ...] of all members' policies in a State.
    """

    def __init__(self, path: Path, members: Sequence[Member], policies: Callable[[Any], Any]):
        self._path, self._policies = path, policies
        self._names = [member.identity for member in members]
        self._places = {member.number: place for place, member in enumerate(members)}
        self._arrays: dict[str, np.ndarray] = {}
        self._env_steps = np.zeros(len(members), np.int64)
        self._returns = np.full(len(members), -np.inf)
        self._saved = True
        if path.exists():
            self._restore()

    def see(self, state: Any, evaluations: Sequence[Evaluation]) -> None:
        """Keep the policies of ``state`` [S, ...] whose evaluations exceed all earlier ones."""
        better = [e for e in evaluations if e.mean > self._returns[self._places[e.member]]]
        if not better:
            return
        arrays = state_arrays.to_arrays(self._policies(state))
        if not self._arrays:
            self._arrays = {name: array.copy() for name, array in arrays.items()}
        for evaluation in better:
            place = self._places[evaluation.member]
            for name, array in arrays.items():
                self._arrays[name][place] = array[place]
            self._returns[place], self._env_steps[place] = evaluation.mean, evaluation.env_steps
        self._saved = False

    def save(self) -> None:
        """Replace the file if any policy has changed.

        Raises:
            NotSaved: the file could not be written.
        """
        if not self._saved and processes.first():
            facts: dict[str, Any] = dict(
                zip(
                    _FACTS,
                    (self._names, list(self._places), self._env_steps, self._returns),
                    strict=True,
                )
            )
            policies: dict[str, Any] = {f"policy.{name}": array for name, array in self._arrays.items()}
            try:
                _write(self._path, facts | policies)
            except OSError as error:
                raise NotSaved(f"{self._path} could not be written ({io_errors.reason(error)})") from error
        self._saved = True

    def _restore(self) -> None:
        with np.load(self._path) as file:
            if file["number"].tolist() == list(self._places):
                self._env_steps, self._returns = file["env_steps"], file["return"]
                self._arrays = {
                    name.removeprefix("policy."): file[name] for name in file.files if name not in _FACTS
                }


def _write(path: Path, arrays: dict[str, Any]) -> None:
    with replacing(path) as partial, partial.open("wb") as file:
        np.savez(file, **arrays)


def copy(source: Path, destination: Path, numbers: Sequence[int]) -> None:
    """Copy the best policies of members ``numbers``, if any were kept."""
    if source.exists():
        np.savez(destination, **_rows(source, numbers))


def arrange(path: Path, before: Sequence[Member], members: Sequence[Member]) -> None:
    """Put the policies of ``members`` in their order, and those of others away.

    Earlier versions of popjax recorded numbers without identities; these are the numbers of ``before``.
    """
    if not path.exists():
        return
    wanted = [(member.identity, member.number) for member in members]
    with np.load(path) as file:
        numbers = file["number"].tolist()
        if "member" in file:
            there = file["member"].tolist()
        elif len(numbers) != len(before):
            raise Refused(
                f"{path} is of a run to which an earlier popjax was adding members: resume it with that"
            )
        else:
            known = {member.number: member.identity for member in before}
            there = [known.get(number, "") for number in numbers]
        if "member" in file and list(zip(there, numbers, strict=True)) == wanted:
            return
        arrays = {name: file[name] for name in file.files if name != "member"}
    arranged: dict[str, Any] = {
        name: np.zeros((len(members), *array.shape[1:]), array.dtype) for name, array in arrays.items()
    }
    arranged["return"][:] = -np.inf
    for place, (name, _) in enumerate(wanted):
        if name in there:
            for leaf, array in arrays.items():
                arranged[leaf][place] = array[there.index(name)]
    arranged["member"], arranged["number"] = zip(*wanted, strict=True)
    _write(path, arranged)


def _rows(path: Path, numbers: Sequence[int]) -> dict[str, Any]:
    """Return the rows of a file for the members ``numbers``."""
    with np.load(path) as file:
        rows = [file["number"].tolist().index(number) for number in numbers]
        return {name: file[name][rows] for name in file.files}


def load(path: Path, shapes: Any, numbers: Sequence[int]) -> tuple[Any, list[int | None]]:
    """Return the best policies of the members ``numbers`` as parameters [S, ...], and the environment steps
    that each had trained for. A member without a kept policy has None and meaningless parameters.

    ``shapes`` are those of one policy.

    Raises:
        Refused: no policy was kept for any of the members, or the structure differs.
    """
    if not path.exists():
        raise Refused(f"{path} does not exist: no policy has been evaluated since training began")
    rows = _rows(path, numbers)
    kept_of = rows["return"] > -np.inf
    if not kept_of.any():
        which = f"member {numbers[0]}" if len(numbers) == 1 else "any of these members"
        raise Refused(f"{path} has no policy of {which}: none was evaluated since training began")
    kept = {name.removeprefix("policy."): array for name, array in rows.items() if name not in _FACTS}
    wanted = {name: leaf.shape for name, leaf in state_arrays.data_shapes(shapes).items()}
    if wanted != {name: array.shape[1:] for name, array in kept.items()}:
        raise Refused(f"{path} holds policies whose structure differs from that of the method in config.json")
    steps = [int(n) if has else None for n, has in zip(rows["env_steps"], kept_of, strict=True)]
    return jax.tree.map(jax.numpy.asarray, state_arrays.from_arrays(kept, shapes)), steps
