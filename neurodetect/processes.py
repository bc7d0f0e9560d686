"""Several processes that share the work of one command, as `torchrun` starts them.

Started plainly a command is one process: the first of one, which waits for nobody. What is said below of
others does not happen then, and PyTorch is not even imported.

Work comes in pieces: the folds of a cross-validation, the recordings of a prediction. They are dealt to
teams, of one process each while there are pieces enough, see `split` and `share`. Where processes are more
than pieces a team has several, which share a piece: the windows of a map, the batches of a training.

No process waits for one that has failed. Whoever ends before its time says so in the store that `torchrun`
keeps, once for all, see `last_word`. Its connections break when it is gone, which the others notice the next
time that they exchange something (`Lost`), and `torchrun` tells those that compute to end (SIGTERM).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeVar

from neurodetect.files import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import PrefixStore, ProcessGroup

# Others set RANK and WORLD_SIZE too; where torchrun did not, there is nobody to share with.
_LAUNCHED = "TORCHELASTIC_RUN_ID" in os.environ
RANK = int(os.environ["RANK"]) if _LAUNCHED else 0  #: the number of this process, from 0
SIZE = int(os.environ["WORLD_SIZE"]) if _LAUNCHED else 1  #: how many there are
LOCAL_RANK = int(os.environ["LOCAL_RANK"]) if _LAUNCHED else 0  #: this one's number on its machine
LOCAL_SIZE = int(os.environ["LOCAL_WORLD_SIZE"]) if _LAUNCHED else 1  #: how many there are on it
FIRST = RANK == 0  #: the process that speaks, draws bars and writes results

PATIENCE = timedelta(days=60)  #: others train for hours; of those that die one learns at once

Item = TypeVar("Item")
Result = TypeVar("Result")


class Lost(KeyboardInterrupt):
    """Another process has ended before its time: this one stops too, and keeps its work."""


class Team:
    """Processes that share one piece of work; `ALONE` is one by itself, for which all of it costs nothing.

    Parameters
    ----------
    number : int
        Of the team.
    leaders : sequence of int
        The first process of each team.
    rank, size : int
        The number of this process in its team, and how many they are.
    group : ProcessGroup, optional
        PyTorch's name for them; needed unless the team is one process.
    """

    def __init__(
        self,
        number: int = 0,
        leaders: Sequence[int] = (0,),
        rank: int = 0,
        size: int = 1,
        group: ProcessGroup | None = None,
    ) -> None:
        self.number, self.leaders, self.rank, self.size = number, leaders, rank, size
        self._group = group

    @property
    def leads(self) -> bool:
        """Whether this process speaks for its team."""
        return self.rank == 0

    def part(self, tensor: torch.Tensor) -> torch.Tensor:
        """This process's share of a tensor's rows; shares differ by one row at most."""
        return tensor.tensor_split(self.size)[self.rank]

    def word(self, value: Result) -> Result:
        """What the leader calls this with, in every process of the team."""
        return value if self.size == 1 else _word(value, self.leaders[self.number], self._group)

    def any(self, flag: bool) -> bool:
        """Whether any process of the team calls this with True."""
        return flag if self.size == 1 else _any(flag, self._group)

    def add_up(self, *tensors: torch.Tensor) -> None:
        """Replace tensors by their sums over the processes of the team, in place; the same bits in each."""
        if self.size > 1:
            import torch.distributed as dist

            _in_place(lambda tensor: dist.all_reduce(tensor, group=self._group), tensors)

    def copy_from_leader(self, *tensors: torch.Tensor) -> None:
        """Replace tensors by those of the leader, in place."""
        if self.size > 1:
            import torch.distributed as dist

            self.any(False)  # on the CPU one can wait for hours
            source = self.leaders[self.number]
            _in_place(lambda tensor: dist.broadcast(tensor, source, self._group), tensors)

    @contextmanager
    def all_threads(self) -> Iterator[None]:
        """While the others of the team wait, their share of this machine's processor is used too."""
        import torch

        before = torch.get_num_threads()
        here = min(self.size - self.rank, LOCAL_SIZE - LOCAL_RANK)
        torch.set_num_threads(before * here)
        try:
            yield
        finally:
            torch.set_num_threads(before)


ALONE = Team()


# Beginning and end


def start(device: torch.device) -> None:
    """Connect the processes; on CUDA give each its GPU, which plain "cuda" means from then on.

    Raises
    ------
    UserError
        The machine has fewer GPUs than processes.
    """
    if SIZE == 1:
        return
    import torch
    import torch.distributed as dist

    if device.type == "cuda":
        if LOCAL_SIZE > torch.cuda.device_count():
            raise UserError(
                f"{LOCAL_SIZE} processes on a machine with {torch.cuda.device_count()} CUDA devices; "
                "start one for each, with --nproc-per-node"
            )
        torch.cuda.set_device(LOCAL_RANK)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    with _exchange():
        _store().add("started", 1)
        while _store().add("started", 0) < SIZE:  # here, since PyTorch would wait without hearing a signal
            time.sleep(0.1)
        dist.init_process_group(backend, store=_store(), rank=RANK, world_size=SIZE, timeout=PATIENCE)


def finish() -> None:
    """Wait until all processes are done, of which the first one writes the results."""
    if SIZE == 1:
        return
    import torch.distributed as dist

    if dist.is_initialized():
        wait()
        dist.destroy_process_group()


def last_word(code: int) -> int | None:
    """Called by a process that ends before its time, with its exit code.

    Returns
    -------
    int or None
        None for the first one to do so, which tells the user why. All others are told its exit code, which
        is to be theirs too, in silence: they have the same reason, or lost a process.
    """
    if SIZE == 1:
        return None
    for number in (signal.SIGTERM, signal.SIGINT):  # as soon as one is gone torchrun ends the others
        signal.signal(number, signal.SIG_IGN)
    try:
        answer = _store().compare_set("the first to end", "", f"{RANK} {code}").decode()
    except RuntimeError:  # torchrun is gone, and its store with it
        return None if FIRST else code
    rank, its_code = map(int, answer.split())
    return None if rank == RANK else its_code


@cache
def _store() -> PrefixStore:
    """torchrun's store of keys and values, which outlives the processes; those of this attempt in it."""
    from torch.distributed import PrefixStore, TCPStore

    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    store = TCPStore(*address, SIZE, is_master=not served and FIRST)
    return PrefixStore(f"neurodetect {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)


# Dealing


def split(pieces: int) -> Team:
    """Split the processes into as many teams as there are pieces of work, or processes if they are fewer.

    To be called by all. Teams are of neighbours, and differ in size by one at most.

    Returns
    -------
    Team
        That of this process.

    Examples
    --------
    >>> split(5).size
    1
    """
    count = min(pieces, SIZE)
    bounds = [SIZE * number // count for number in range(count + 1)]
    team = ALONE
    if count < SIZE:
        wait()  # if one has failed it shows here; PyTorch would wait for it, and hear no signal
    for number, (first, end) in enumerate(pairwise(bounds)):
        # All processes have to take part in the making of every group.
        group = _group(range(first, end)) if end - first > 1 else None
        if first <= RANK < end:
            team = Team(number, bounds[:-1], RANK - first, end - first, group)
    return team


def share(
    items: Sequence[Item], work: Callable[[Item], Result], team: Team = ALONE
) -> Iterator[tuple[Item, Result]]:
    """Deal items to teams, one in turn to each.

    Parameters
    ----------
    items : sequence
        The same in all processes.
    work : callable
        Given an item, returns what `pickle` takes.
    team : Team
        Of `split`.

    Yields
    ------
    item, result
        In order, in the first process; in all others nothing.
    """
    if SIZE == 1:
        for item in items:
            yield item, work(item)
        return
    import torch
    import torch.distributed as dist

    cpu, count = torch.device("cpu"), len(team.leaders)
    done = {index: work(items[index]) for index in range(team.number, len(items), count)}
    for index, item in enumerate(items):
        leader = team.leaders[index % count]
        if RANK == leader == 0:
            yield item, done.pop(index)
        elif FIRST:
            received: list[Any] = [None]
            with _exchange():
                dist.recv_object_list(received, leader, device=cpu)
            yield item, received[0]
        elif RANK == leader:
            with _exchange():
                dist.send_object_list([done.pop(index)], 0, device=cpu)


def first_word(value: Result) -> Result:
    """What the first process calls this with, in all of them."""
    return value if SIZE == 1 else _word(value, 0, None)


def wait() -> None:
    """Wait until all processes are here."""
    if SIZE > 1:
        _any(False, None)


# In PyTorch's words


@contextmanager
def _exchange() -> Iterator[None]:
    """What PyTorch says of a broken connection, as `Lost`."""
    try:
        yield
    except RuntimeError as error:  # of gloo's and NCCL's errors some are no more than that
        raise Lost(f"another process has ended ({str(error).splitlines()[0]})") from error


def _group(ranks: Sequence[int]) -> ProcessGroup:
    import torch.distributed as dist

    with _exchange():
        return dist.new_group(list(ranks), timeout=PATIENCE)


def _word(value: Any, source: int, group: ProcessGroup | None) -> Any:
    import torch
    import torch.distributed as dist

    values = [value]
    with _exchange():
        dist.broadcast_object_list(values, source, group, torch.device("cpu"))
    return values[0]


def _any(flag: bool, group: ProcessGroup | None) -> bool:
    import torch
    import torch.distributed as dist

    flags = torch.tensor([int(flag)])
    with _exchange():
        dist.all_reduce(flags, dist.ReduceOp.MAX, group)
    return bool(flags.item())


def _in_place(exchange: Callable[[torch.Tensor], Any], tensors: Sequence[torch.Tensor]) -> None:
    with _exchange():
        for tensor in tensors:
            values = tensor.detach().contiguous()  # in the same order in every process
            exchange(values)
            if values.data_ptr() != tensor.data_ptr():
                tensor.detach().copy_(values)
