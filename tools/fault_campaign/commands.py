"""The command of a campaign: its output folder, its number of ranks, its environment."""

import os
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from fault_campaign.processes import MARK
from pipeline.errors import UserError

PLACEHOLDER = "{output}"
HOOK = Path(__file__).parent / "hook"
_TIMEOUT = "--runtime.collective_timeout"
_NUM_RANKS = re.compile(r"--(?:nproc[-_]per[-_]node|tasks-per-node|ntasks|gpus-per-node)[= ](\d+)")


@dataclass(frozen=True)
class Command:
    """A command line of an entry point or a launcher.

    Attributes:
        argv: its words; the output folder is the word after ``--output`` or is {output}.
        collective_timeout: seconds for ``runtime.collective_timeout`` unless ``argv`` sets it.
    """

    argv: tuple[str, ...]
    collective_timeout: int

    def __post_init__(self) -> None:
        if not self.argv:
            raise UserError("no command: write it after --, as --help shows")
        if self.with_output(Path("a")) == self.with_output(Path("b")):
            raise UserError(
                f"the command names no output folder; add --output FOLDER, or {PLACEHOLDER} where "
                "the folder is to be"
            )
        if self.trains is None:
            raise UserError(
                "the command must contain finetune or evaluate, as in pipeline/finetune.py"
            )

        if self.submits and not {"--wait", "-W"} & set(self.argv):
            raise UserError("the command submits a job and does not wait for it; add --wait")

    def with_output(self, folder: Path) -> list[str]:
        """The command line that writes to another folder."""
        argv = list(self.argv)
        if any(PLACEHOLDER in word for word in argv):
            argv = [word.replace(PLACEHOLDER, str(folder)) for word in argv]
        else:
            for position, word in enumerate(argv):
                if word == "--output" and position + 1 < len(argv):
                    argv[position + 1] = str(folder)
                elif word.startswith("--output="):
                    argv[position] = f"--output={folder}"
        if not any(word.partition("=")[0] == _TIMEOUT for word in argv):
            argv += [_TIMEOUT, str(self.collective_timeout)]
        return argv

    @property
    def trains(self) -> bool | None:
        """Whether it is a fine-tuning; False: an evaluation; None: it is neither."""
        for word in self.argv:
            name = Path(word).name
            if "finetune" in name or "evaluate" in name:
                return "finetune" in name
        return None

    @property
    def num_ranks(self) -> int:
        """The number of ranks, as the command states it; 1 if it states none."""
        match = _NUM_RANKS.search(" ".join(self.argv))
        return int(match[1]) if match else 1

    @property
    def under_torchrun(self) -> bool:
        """Whether torchrun starts the ranks."""
        names = {Path(word).name for word in self.argv}
        return bool(names & {"torchrun", "torch.distributed.run"})

    @property
    def submits(self) -> bool:
        """Whether it submits jobs to SLURM: it is sbatch, or a launcher that does."""
        paths = [Path(word) for word in self.argv]
        if any(path.name == "sbatch" for path in paths):
            return True
        elsewhere = re.search(r"--cluster[= ](?:local|debug)\b", " ".join(self.argv))
        return any(path.parent.name == "launchers" for path in paths) and not elsewhere

    def __str__(self) -> str:
        return shlex.join(self.argv)


def environment(mark: str) -> dict[str, str]:
    """The environment of a command: marked, and with the hook for faults inside a rank."""
    paths = [str(HOOK), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {MARK: mark, "PYTHONPATH": os.pathsep.join(paths)}
