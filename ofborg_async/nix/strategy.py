"""How the attrs of a job are spread over evaluations. Pure.

What is not known beforehand is how much the attrs share. Evaluated by one process, n attrs cost S + n*x, with S for
what they share (in nixpkgs nearly all) and x for each alone; by p processes S + n*x/p of time and p*S + n*x of work.
So:

- Where x dominates, all cores have to work from the start: a process that is given everything and found to be slow
  cannot hand its rest to another, and to start again is to lose what it did.
- Where S dominates, each further process costs S of work and memory and gains nothing, but it takes no time either.

Therefore the attrs are dealt in equal parts to as many processes as may run, at the start, but not more than one for
each ``ATTRS_PER_PROCESS`` attrs: the time is never above the best possible by more than the inequality of the parts,
and the work stays near a quarter of one evaluation for each attr, which is the original's way (and it evaluates all
once more to build it). What an earlier job shared says nothing of this one, since one file can have both kinds of
attrs; so nothing is learnt.

A part is a run of neighbours, so that the derivations of all parts, put together, keep the job's order.

If an attr cannot be instantiated nix stops there. The rest of the part is tried again without it, together, while it
is evaluated alone for its exact error lines; after ``ROUNDS`` such losses the rest goes one by one, which bounds the
work of a job where everything fails to ``ROUNDS`` evaluations for each part more than one for each attr.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

SMALL_CPU_SECONDS = 0.2
"""An evaluation that takes less of a processor is small (see ``ahead``).

Another start of nix takes 0.015 s, less than a twelfth of a larger one; and evaluations allocate up to 1 MB in each
0.001 s (measured with nix 2.8 and 2.26), which stays for as long as the build takes. It is not the time on a clock:
that would send small jobs the longer way just when the host is busy.
"""

ATTRS_PER_PROCESS = 4
ROUNDS = 3
ARGUMENT_BYTES = 100 * 1024
"""What the attrs of one evaluation may take of the argument list: the smallest limit of a system we know is 128 KiB."""


def parts(sizes_bytes: Sequence[int], parallel: int, limit_bytes: int = ARGUMENT_BYTES) -> list[range]:
    """Indexes of the attrs that each evaluation takes; ``sizes_bytes`` is what each attr adds to an argument list."""
    count = len(sizes_bytes)
    processes = max(1, min(parallel, -(-count // ATTRS_PER_PROCESS)))
    bounds = [count * process // processes for process in range(processes + 1)]
    return [
        part
        for start, end in itertools.pairwise(bounds)
        for part in _within(range(start, end), sizes_bytes, limit_bytes)
    ]


def _within(indexes: range, sizes_bytes: Sequence[int], limit_bytes: int) -> list[range]:
    cuts = [indexes.start]
    size = 0
    for index in indexes:
        if size and size + sizes_bytes[index] > limit_bytes:
            cuts.append(index)
            size = 0
        size += sizes_bytes[index]
    return [range(start, end) for start, end in zip(cuts, [*cuts[1:], indexes.stop], strict=True) if start < end]
