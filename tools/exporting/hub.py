"""An export on the Hugging Face hub: what would be sent, and sending it."""

from pathlib import Path
from typing import Any

from exporting.packages import optional_package
from pipeline.errors import UserError, first_line


def check_repository(repository: str) -> None:
    """Refuse a name that the hub does not take.

    Raises:
        UserError: it is not of the form USER/NAME, or huggingface_hub is missing.
    """
    # Submodules are imported by name: the package loads its attributes lazily.
    errors = optional_package("huggingface_hub.errors", "--push")
    validate = optional_package("huggingface_hub.utils", "--push").validate_repo_id
    try:
        validate(repository)
        valid = "/" in repository
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise UserError(f"--push must be USER/NAME, got {repository}")


def has_token() -> bool:
    """Whether this machine is logged in to the hub; the network is not used."""
    return _hub().get_token() is not None


def check_token() -> None:
    """Refuse to push without a token.

    Raises:
        UserError: this machine is not logged in.
    """
    if not has_token():
        raise UserError(
            "--push needs a token: hf auth login, or set HF_TOKEN; --dry-run needs none"
        )


def push(folder: Path, repository: str, *, private: bool) -> str:
    """Create the repository if it does not exist, and send all files in one commit.

    Args:
        folder: the export.
        repository: USER/NAME.
        private: create it as a private one.

    Returns:
        The address of the commit.

    Raises:
        UserError: the hub cannot be reached, or refuses.
    """
    hub = _hub()
    api = hub.HfApi()
    try:
        api.create_repo(repository, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Weights, card, evaluations"
        )
    # Errors of the hub, of its HTTP client and of the network, of many types.
    except Exception as error:
        raise UserError(
            f"--push: {repository} was not sent ({first_line(error)}); the export is in {folder}: "
            f"hf upload {repository} {folder}"
        ) from None
    return str(commit.commit_url)


def _hub() -> Any:
    return optional_package("huggingface_hub", "--push")
