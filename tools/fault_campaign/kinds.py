"""The kinds of faults: what they do to a running command, or to its files before it resumes."""

import signal

from fault_campaign import files
from fault_campaign.hook import sitecustomize as hook
from fault_campaign.job_faults import cancel, lose_node, preempt, requeue, warn_job
from fault_campaign.kind import START, WORK, Kind
from fault_campaign.process_faults import (
    PAUSE_SECONDS,
    by_hook,
    cut_network,
    hang,
    limit_files,
    make_read_only,
    pause,
    to_all,
    to_launcher,
    to_rank,
)

_OWN_NETWORK = ("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")
_OWN_MOUNTS = ("unshare", "--mount", "--propagation", "private")
_kill_all = to_all(signal.SIGKILL)

KINDS = {
    kind.name: kind
    for kind in (
        Kind("kill_rank", "SIGKILL to one rank", to_rank(signal.SIGKILL)),
        Kind("terminate_rank", "SIGTERM to one rank", to_rank(signal.SIGTERM)),
        Kind("interrupt_rank", "SIGINT to one rank", to_rank(signal.SIGINT)),
        Kind("segmentation_fault", "SIGSEGV to one rank", to_rank(signal.SIGSEGV)),
        Kind("abort", "SIGABRT to one rank", to_rank(signal.SIGABRT)),
        Kind("kill_all", "SIGKILL to all processes", _kill_all),
        Kind("terminate_all", "SIGTERM to all processes", to_all(signal.SIGTERM)),
        Kind(
            "kill_torchrun",
            "SIGKILL to torchrun",
            to_launcher(signal.SIGKILL),
            needs=("torchrun",),
        ),
        Kind(
            "terminate_torchrun",
            "SIGTERM to torchrun",
            to_launcher(signal.SIGTERM),
            needs=("torchrun",),
        ),
        Kind(
            "interrupt_torchrun",
            "SIGINT to torchrun",
            to_launcher(signal.SIGINT),
            needs=("torchrun",),
        ),
        Kind(
            "pause",
            f"SIGSTOP to one rank, SIGCONT within {PAUSE_SECONDS:g} s",
            pause,
            continues=True,
        ),
        Kind("hang", "SIGSTOP to one rank for good", hang, needs=("ranks",)),
        Kind("exception", "an exception in one rank", by_hook(hook.EXCEPTION_SIGNAL, "exception")),
        Kind(
            "lock_held",
            "the interpreter lock of one rank is held for good",
            by_hook(hook.LOCK_SIGNAL, "interpreter lock held"),
            needs=("ranks",),
        ),
        Kind(
            "clock_jump",
            "the wall clock of one rank, as Python reads it, jumps three hours ahead",
            by_hook(hook.CLOCK_SIGNAL, "clock three hours ahead"),
            continues=True,
        ),
        Kind("disk_full", "files cannot grow beyond a limit", limit_files, (START, WORK)),
        Kind(
            "read_only",
            "the output folder becomes read-only",
            make_read_only,
            wrapper=_OWN_MOUNTS,
            needs=("namespaces",),
        ),
        Kind(
            "network_cut",
            "the network between the ranks is cut",
            cut_network,
            wrapper=_OWN_NETWORK,
            needs=("torchrun", "ranks", "namespaces"),
        ),
        Kind(
            "torn_checkpoint",
            "SIGKILL to all processes; the newest checkpoint is cut short",
            _kill_all,
            (WORK,),
            files.cut_newest_checkpoint,
            needs=("finetune",),
        ),
        Kind(
            "flipped_bit",
            "SIGKILL to all processes; a bit of the newest checkpoint changes",
            _kill_all,
            (WORK,),
            files.flip_bit_of_newest_checkpoint,
            needs=("finetune",),
        ),
        Kind(
            "requeue",
            "scontrol requeue of the job",
            requeue,
            needs=("job",),
            continues=True,
        ),
        Kind(
            "cancel",
            "scancel of the job",
            cancel,
            needs=("job",),
        ),
        Kind(
            "warning",
            "the signal that SLURM sends before a time limit (USR2)",
            warn_job,
            needs=("job",),
            continues=True,
        ),
        Kind(
            "preemption",
            "a job of higher priority takes the nodes, also those that others share",
            preempt,
            needs=("job", "urgent"),
            by_name=True,
            continues=True,
        ),
        Kind(
            "node_down",
            "SLURM marks a node of the job as down, and requeues all jobs there",
            lose_node,
            needs=("job", "root"),
            by_name=True,
            continues=True,
        ),
    )
}
