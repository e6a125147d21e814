"""Push of an exported folder to the Hugging Face hub."""

from pathlib import Path

from huggingface_hub import HfApi, get_token, is_offline_mode
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from fractal_model.common.errors import FractalError, one_line


def require_repository_name(name: str) -> None:
    """Raise FractalError unless `name` has the form USER/NAME and the hub's allowed characters."""
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise FractalError(f"{name} is no repository's name ({one_line(error)})") from error
    if "/" not in name:
        raise FractalError(f"{name} is no repository's name: expected USER/NAME")


def require_login() -> None:
    """Raise FractalError if HF_HUB_OFFLINE is set, or if this user has no token of the hub."""
    if is_offline_mode():
        raise FractalError("nothing can be pushed while HF_HUB_OFFLINE is set: unset it")
    if get_token() is None:
        raise FractalError(
            "the hub needs a token to push: run `hf auth login`, or set HF_TOKEN to a token that "
            "may write"
        )


def push_folder(folder: Path, name: str) -> str:
    """Upload all files of an exported folder as one model of the hub, and return its address. The
    repository USER/NAME is made if it does not exist; its visibility is not changed. FractalError:
    the hub does not answer, refuses the token, or refuses the files."""
    api = HfApi()
    try:
        repository = api.create_repo(name, repo_type="model", exist_ok=True)
        message = "Upload of a fractal generative model"
        api.upload_folder(repo_id=name, folder_path=folder, commit_message=message)
    # ValueError: the card's metadata. RuntimeError: the library that uploads large files.
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        raise FractalError(
            f"{name} was not pushed ({one_line(error)}): check the name, the token's rights and "
            f"the connection, then run again"
        ) from error
    return str(repository)
