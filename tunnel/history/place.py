"""Whether a process keeps a history, and where. Used by `beside` and by `trio-tunnel history`."""

from pathlib import Path

from tunnel.config import ClientConfig, ServerConfig

FILE_NAME = "history.sqlite"


def history_file(config: ServerConfig | ClientConfig) -> Path | None:
    """The file; None for a process that keeps none: it has no directory for it, or was told so."""
    said = config.history
    if said.enabled is False:
        return None
    if said.file is not None:
        return said.file
    return None if config.state_dir is None else config.state_dir / FILE_NAME
