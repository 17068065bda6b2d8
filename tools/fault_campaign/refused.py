"""The error of a fault that could not be caused."""


class FaultRefusedError(Exception):
    """The system or SLURM refuses a fault; the message is what they print."""
