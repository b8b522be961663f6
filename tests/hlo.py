"""Read the optimized HLO text of a compiled program: its kernels and loops, and the bytes and operations of
each.

Used by the tests and by ``benchmarks/accelerator_programs.py``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

FREE = {
    "add-dependency",
    "after-all",
    "bitcast",
    "constant",
    "get-tuple-element",
    "iota",
    "opt-barrier",
    "parameter",
    "partition-id",
    "replica-id",
    "tuple",
}
"""Operations that launch nothing."""
PLACES = {"dynamic-update-slice": 1, "scatter": -1}
"""Operations that write a part of their first operand in place: the operand with what is written."""
COLLECTIVES = ("all-gather", "all-reduce", "all-to-all", "collective-permute", "reduce-scatter")


class Instruction(NamedTuple):
    """A line of a computation. ``shape`` and ``rest`` (the attributes) are text."""

    name: str
    shape: str
    opcode: str
    operands: list[str]
    rest: str

    @property
    def bytes(self) -> int:
        """Return the size of the result."""
        return size(self.shape)

    @property
    def operation(self) -> str:
        """Return the path of the source operation, in which ``chain`` names the phases."""
        found = re.search(r'op_name="([^"]*)"', self.rest)
        return found[1] if found else ""

    def called(self, attribute: str) -> str:
        """Return the name of the computation that ``attribute`` refers to, "" without."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.rest)
        return found[1] if found else ""


class Kernel(NamedTuple):
    """A launch.

    bytes: moved to and from memory, where each operand is read once and a gather reads what it gives.
    flops: of matrix products and convolutions.
    cycles: as the compiler estimates them; 0 where it does not say.
    """

    instruction: Instruction
    bytes: int
    flops: int
    cycles: int

    @property
    def copies(self) -> bool:
        """Return whether it does nothing but copy or lay out anew; what a TPU brings into its fast memory,
        of 128 MiB, and back from there does not count."""
        opcode, name = self.instruction.opcode, self.instruction.name
        if "S(1)" in self.instruction.shape:
            return False
        fused_copy = opcode == "fusion" and re.match(r"(wrapped_)?(copy|transpose)(_fusion)?(\.|$)", name)
        return opcode in ("copy", "copy-start", "transpose") or bool(fused_copy)


class Loop(NamedTuple):
    """A body: its kernels, and the loops inside. ``turns`` is None where data decides."""

    operation: str
    turns: int | None
    kernels: list[Kernel]
    loops: list[Loop]

    def walk(self) -> Iterator[Loop]:
        """Give this loop and all inside, outermost first."""
        yield self
        for loop in self.loops:
            yield from loop.walk()

    def turn(self) -> Iterator[tuple[Kernel, int]]:
        """Give each kernel of one turn with how often it runs; inner loops of unknown length turn once."""
        yield from ((kernel, 1) for kernel in self.kernels)
        for loop in self.loops:
            yield from ((kernel, times * (loop.turns or 1)) for kernel, times in loop.turn())


class Program(NamedTuple):
    """Computations by name; ``entry`` is where it begins."""

    computations: dict[str, list[Instruction]]
    entry: str

    def main(self) -> Loop:
        """Return the whole program as a loop of one turn."""
        return self._loop(self.entry, "", 1)

    def _loop(self, name: str, operation: str, turns: int | None) -> Loop:
        kernels: list[Kernel] = []
        loops: list[Loop] = []
        for instruction in self.computations[name]:
            opcode = instruction.opcode
            if opcode == "while":
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', instruction.rest)
                count = int(known[1]) if known else None
                loops.append(self._loop(instruction.called("body"), instruction.operation, count))
            elif opcode == "conditional":
                inner = max((self._loop(each, "", 1) for each in branches(instruction)), key=_launches)
                kernels, loops = kernels + inner.kernels, loops + inner.loops
            elif opcode in ("call", "async-start") and self._inside(instruction):
                inner = self._loop(self._inside(instruction), "", 1)
                kernels, loops = kernels + inner.kernels, loops + inner.loops
            elif opcode not in FREE and not opcode.endswith(("-done", "-update")):
                kernels.append(self._kernel(name, instruction))
        return Loop(operation, turns, kernels, loops)

    def _inside(self, instruction: Instruction) -> str:
        return instruction.called("to_apply") or instruction.called("calls")

    def _kernel(self, computation: str, instruction: Instruction) -> Kernel:
        found = re.search(r'"estimated_cycles":"(\d+)"', instruction.rest)
        cycles = int(found[1]) if found else 0
        named = {each.name: each for each in self.computations[computation]}
        if instruction.opcode == "fusion":
            moved = self._moved(self.computations[self._inside(instruction)])
        else:
            moved = _moved(instruction, [named[name] for name in instruction.operands if name in named])
        return Kernel(instruction, moved, self._flops(computation, instruction), cycles)

    def _moved(self, body: list[Instruction]) -> int:
        """Return the bytes that a fused computation reads and writes."""
        named = {each.name: each for each in body}
        total, written = 0, body[-1].bytes
        for parameter in (each for each in body if each.opcode == "parameter"):
            read = 0
            for user, first in _users(body, parameter):
                if user.opcode in ("gather", "dynamic-slice") and first:
                    read += user.bytes
                elif user.opcode in PLACES and first:
                    update = named[user.operands[PLACES[user.opcode]]].bytes
                    read, written = read + update, written - user.bytes + update
                else:
                    read += parameter.bytes
            total += min(read, parameter.bytes)
        return total + max(written, 0)

    def _flops(self, computation: str, instruction: Instruction) -> int:
        shapes = {each.name: each.shape for each in self.computations[computation]}
        if instruction.opcode == "fusion":
            inside = self._inside(instruction)
            return sum(self._flops(inside, each) for each in self.computations[inside])
        if instruction.opcode == "dot":
            left = dimensions(shapes[instruction.operands[0]])
            found = re.search(r"lhs_contracting_dims=\{([\d,]+)\}", instruction.rest)
            summed = math.prod(left[int(axis)] for axis in found[1].split(",")) if found else 1
            return 2 * math.prod(dimensions(instruction.shape)) * summed
        labels = re.search(r"dim_labels=\w+_(\w+)->", instruction.rest)
        if instruction.opcode == "convolution" and labels:
            kernel = dimensions(shapes[instruction.operands[1]])
            summed = math.prod(kernel) // kernel[labels[1].index("o")]
            window = dict(re.findall(r"(size|lhs_dilate)=([\dx]+)", instruction.rest))
            if "lhs_dilate" in window:  # as a TPU's compiler writes matrix products of a batch
                for size, apart in zip(*(map(int, window[k].split("x")) for k in window), strict=True):
                    summed = summed // size * -(-size // apart)  # the others meet only zeros
            return 2 * math.prod(dimensions(instruction.shape)) * summed
        return 0


def _users(body: list[Instruction], parameter: Instruction) -> Iterator[tuple[Instruction, bool]]:
    """Give what reads a parameter, through bitcasts too, and whether as its first operand."""
    names = {parameter.name}
    for each in body:
        if names & set(each.operands):
            if each.opcode == "bitcast":
                names.add(each.name)
            else:
                yield each, each.operands[0] in names


def _launches(loop: Loop) -> int:
    return sum(times for _, times in loop.turn())


def _moved(instruction: Instruction, operands: list[Instruction]) -> int:
    """Return the bytes that an operation reads and writes that is not fused."""
    if instruction.opcode in ("gather", "dynamic-slice", "copy"):
        return 2 * instruction.bytes
    if instruction.opcode == "copy-start":
        return 2 * operands[0].bytes
    if instruction.opcode in PLACES:
        return 2 * operands[PLACES[instruction.opcode]].bytes
    return instruction.bytes + sum(each.bytes for each in operands)


def branches(instruction: Instruction) -> list[str]:
    """Return the computations between which a conditional chooses."""
    several = re.search(r"branch_computations=\{([^}]*)\}", instruction.rest)
    if several:
        return [name.strip().lstrip("%") for name in several[1].split(",")]
    return [instruction.called("true_computation"), instruction.called("false_computation")]


def dimensions(shape: str) -> list[int]:
    """Return the dimensions of an array's shape."""
    found = re.search(r"\[([\d,]*)\]", shape)
    return [int(each) for each in found[1].split(",") if each] if found else []


def size(shape: str) -> int:
    """Return the bytes of an array or of a tuple of arrays, without padding."""
    total = 0
    for kind, sizes in re.findall(r"\b([a-z]\w*)\[([\d,]*)\]", shape):
        width = re.search(r"\d+", kind)  # bf16, f8e4m3fn, s32
        bits = int(width[0]) if width else 8 * (kind == "pred")
        total += bits * math.prod(int(each) for each in sizes.split(",") if each)
    return total // 8


def read(text: str) -> Program:
    """Return the program that ``Compiled.as_text()`` tells of."""
    computations: dict[str, list[Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
        elif " = " in line and line.startswith("  "):
            computations[current].append(_instruction(line))
    return Program(computations, entry)


def _instruction(line: str) -> Instruction:
    name, right = line.strip().removeprefix("ROOT ").split(" = ", 1)
    shape, right = _split(right) if right.startswith("(") else right.split(" ", 1)
    opcode, inner = right.strip().split("(", 1)
    inside, rest = _split("(" + inner)
    operands = re.findall(r"%([\w.\-]+)", inside)
    return Instruction(name.lstrip("%"), shape, opcode, operands, rest)


def _split(text: str) -> tuple[str, str]:
    """Return the part in parentheses with which ``text`` begins, and what follows."""
    depth = 0
    for place, character in enumerate(text):
        depth += (character == "(") - (character == ")")
        if depth == 0:
            return text[: place + 1], text[place + 1 :]
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")
