"""The errors that a user can cause. Each message says what was found and where, what is needed, what to do."""


class UserError(Exception):
    """Something that the user has to change. The command line ends with exit code 2 and prints the message."""


class ConfigError(UserError):
    """A configuration file, a `--set` override or a relation between settings is at fault."""


class DataError(UserError):
    """A data file is missing, empty or holds a row that cannot be used."""


class ModelError(UserError):
    """A model specification, a tokenizer or an adapter cannot be used."""


class ArtifactError(UserError):
    """An artifact is missing, incomplete or not what its manifest says."""


class StorageError(UserError):
    """A folder is full, or may not be written."""


class StageError(Exception):
    """A stage failed while it ran. The command line ends with exit code 1."""
