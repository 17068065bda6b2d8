"""A campaign: an undisturbed run, then the planned faults, each with its resumed run.

FOLDER/undisturbed/ and FOLDER/faults/NUMBER-KIND/ contain the run, its output, and a JSON file once
it is done; so a campaign that is interrupted resumes. Runs that lost nothing are deleted.
"""

import json
import shutil
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fault_campaign import files, processes, slurm
from fault_campaign.commands import Command
from fault_campaign.disturbed_run import DisturbedRun, Starter
from fault_campaign.job_faults import NODE_DOWN, bring_node_back
from fault_campaign.outcome import Outcome
from fault_campaign.pace import Pace
from fault_campaign.plan import Fault
from pipeline.errors import UserError
from pipeline.runtime.files import write_json

_PACE, _STORED = "pace.json", "outcomes.json"


@dataclass(frozen=True)
class Settings:
    """Settings of a campaign.

    Attributes:
        folder: of the campaign.
        max_starts: starts of the command for each fault, with the disturbed one.
        time_limit: seconds from a start of the command, after which it is killed.
        keep: keep the folders of runs that lost nothing.
        faults_per_run: how many faults come in one run, one after another.
    """

    folder: Path
    max_starts: int
    time_limit: float
    keep: bool
    faults_per_run: int = 1


class Campaign:
    """Runs the faults of a plan, and stores what came of each."""

    def __init__(self, command: Command, settings: Settings) -> None:
        self.command, self.settings = command, settings
        self.mark = uuid.uuid5(uuid.NAMESPACE_URL, str(settings.folder.resolve())).hex
        self.end()  # of a campaign that was killed
        self._starter = Starter(command, self.mark, settings.time_limit, settings.max_starts)

    @property
    def whole(self) -> Path:
        """The output folder of the undisturbed run."""
        return self.settings.folder / "undisturbed" / "run"

    def end(self) -> None:
        """End the processes and jobs of this campaign, and bring back a node that is down."""
        processes.end_all(self.mark)
        for folder in (self.whole.parent, *self.settings.folder.glob("faults/*")):
            if (folder / NODE_DOWN).exists():
                bring_node_back(folder / NODE_DOWN)
            if not any((folder / name).exists() for name in (_PACE, _STORED)):
                logs = folder.glob("output*.txt")
                output = "".join(path.read_text(errors="replace") for path in logs)
                slurm.cancel_all(slurm.jobs_of(folder / "run", output), folder / "run")

    def undisturbed(self) -> Pace:
        """Run the command undisturbed, unless that is done.

        Raises:
            UserError: it failed; the folder is of a campaign of another command.
        """
        stored = self.whole.parent / _PACE
        if stored.exists():
            return Pace.read(stored, self.command, self.settings.folder)
        shutil.rmtree(self.whole.parent, ignore_errors=True)
        self.whole.parent.mkdir(parents=True)
        log = self.whole.parent / "output.txt"
        attempt = self._starter.start(self.whole, log)
        attempt.wait_for_row(0)
        start_seconds = attempt.seconds
        ended = attempt.wait()
        num_rows = files.num_rows(self.whole)
        if ended.exit_code or not num_rows:
            last = (ended.errors or ended.output.splitlines() or ["no output"])[-1]
            failure = f"failed with exit code {ended.exit_code}"
            if ended.timed_out:
                failure = f"did not end within --time-limit, {self.settings.time_limit:g} s"
            raise UserError(f"the undisturbed run {failure}: {last}")
        sizes = [(self.whole / name).stat().st_size for name in files.all_files(self.whole)]
        pace = Pace(start_seconds, ended.seconds, num_rows, max(sizes))
        pace.write(stored, self.command)
        return pace

    def run(
        self, plan: Sequence[Fault], pace: Pace, report: Callable[[Outcome, int], None]
    ) -> list[Outcome]:
        """Run all faults that are not done.

        Args:
            plan: the faults.
            pace: of the undisturbed run.
            report: is called after each fault that was run, with the number of those to come.
        """
        outcomes: list[Outcome] = []
        size = self.settings.faults_per_run
        for begin in range(0, len(plan), size):
            faults = plan[begin : begin + size]
            folder = self.settings.folder / "faults" / _name(faults)
            done = _stored(folder, faults)
            if done is None:
                done = DisturbedRun(self._starter, folder, faults, pace, self.whole).run()
                write_json(folder / _STORED, {"outcomes": [asdict(outcome) for outcome in done]})
                if not done[-1].lost and not self.settings.keep:
                    shutil.rmtree(folder / "run")
                for outcome in done:
                    report(outcome, len(plan) - begin - len(done))
            outcomes += done
        return outcomes


def _name(faults: Sequence[Fault]) -> str:
    """The name of the folder of a run with these faults."""
    first, last = faults[0], faults[-1]
    suffix = first.kind if len(faults) == 1 else f"{last.number:03d}"
    return f"{first.number:03d}-{suffix}"


def _stored(folder: Path, faults: Sequence[Fault]) -> list[Outcome] | None:
    """The outcomes of a run that was done before; None if it was not.

    Raises:
        UserError: they are of other faults.
    """
    if not (folder / _STORED).exists():
        return None
    stored = json.loads((folder / _STORED).read_text())["outcomes"]
    outcomes = [Outcome.from_dict(values) for values in stored]
    if [outcome.fault for outcome in outcomes] != list(faults):
        raise UserError(f"{folder} is of another plan; give another --output")
    return outcomes
