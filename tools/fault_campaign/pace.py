"""The undisturbed run of a campaign: its pace, and the command that it is of."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_campaign.commands import Command
from pipeline.errors import UserError, warn
from pipeline.runtime import machine
from pipeline.runtime.files import write_json


@dataclass(frozen=True)
class Pace:
    """The undisturbed run: how long it took, and how many rows it wrote.

    Attributes:
        start_seconds: until the first row of results.
        seconds: in all.
        num_rows: lines of results at the end.
        largest_file: bytes of its largest file.
    """

    start_seconds: float
    seconds: float
    num_rows: int
    largest_file: int

    def write(self, path: Path, command: Command) -> None:
        """Store the pace with the command and the commit of this project."""
        write_json(path, {"pace": asdict(self), **asdict(command), "commit": machine.commit()})

    @classmethod
    def read(cls, path: Path, command: Command, folder: Path) -> "Pace":
        """Read the pace of the undisturbed run; warn if that was of another commit.

        Args:
            path: the file.
            command: the command of this campaign.
            folder: of the campaign, for messages.

        Raises:
            UserError: it is of another command, whose results cannot be compared with this one's.
        """
        stored = json.loads(path.read_text())
        expected = (list(command.argv), command.collective_timeout)
        if (stored.get("argv"), stored.get("collective_timeout")) != expected:
            raise UserError(
                f"the campaign in {folder} is of another command or --collective-timeout; give "
                "another --output"
            )
        commits = stored["commit"], machine.commit()
        if commits[0] != commits[1]:
            before, now = (name or "unknown" for name in commits)
            warn(
                f"the campaign in {folder} was begun at commit {before} of this project, and this "
                f"is {now}: results may differ for that reason"
            )
        return cls(**stored["pace"])
