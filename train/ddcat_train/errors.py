"""The exceptions of training; their messages are written for the user."""

from ddcat.errors import DdcatError

__all__ = ["AttackError", "CheckpointError", "ConfigError", "CorruptionError", "DataError", "LostRankError", "TrainError"]


class TrainError(DdcatError):
    """Base of what ddcat_train raises on purpose."""


class AttackError(TrainError):
    """Images, labels or a model that an attack cannot work with."""


class CorruptionError(TrainError):
    """A corruption of unknown name or severity, or an image that it cannot work with."""


class ConfigError(TrainError):
    """A configuration with an unknown key, a wrong value, or parts that do not fit together."""


class DataError(TrainError):
    """A data set that is missing, incomplete, or holds what its format does not allow."""


class CheckpointError(TrainError):
    """A checkpoint or weight file that is missing, damaged, or of another network."""


class LostRankError(TrainError):
    """Another process of the run is gone; what became of it is the error to tell."""

    exit_status = 75
