"""The ranks of a run: what they add up, agree on, do once, and fail at together.

The only code that talks to `torch.distributed`, apart from Lightning, which starts the process
group and runs DDP. In a process group all functions but `rank`, `world_size`, `backend`,
`first_failure` and the clocks are collectives, which every rank must call. Without a process group
they are the plain local operation.
"""

from ptycho_dist.distributed.agreement import (
    Outcome,
    first_failure,
    from_rank_zero,
    on_every_rank,
    on_every_rank_of_this_node,
    require_same,
    run_on_rank_zero,
    run_once_a_node,
    run_together,
)
from ptycho_dist.distributed.failures import FailedTogether, Interrupted, describe
from ptycho_dist.distributed.process_group import (
    backend,
    leave_together,
    rank,
    wait_for_all,
    world_size,
)
from ptycho_dist.distributed.reductions import largest, mean_over_ranks, sum_floats, sum_integers
from ptycho_dist.distributed.timing import (
    average_gradients,
    collective_timer,
    seconds_an_all_reduce,
    time_when_done,
)
