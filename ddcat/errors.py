"""
Everything that ddcat raises on purpose.

    DdcatError
    ├── BundleError                 (ddcat)         a bundle that is missing, damaged, altered or of another schema
    ├── WriteError                  (ddcat)         a file that cannot be written: no room, or no permission
    ├── ImageFileError              (ddcat)         an image file that is damaged   (image_files.py)
    │   └── AnimationError          (ddcat)         one of several pictures
    ├── EngineError                 (ddcat.engines) a runtime that is missing, or a graph that is not what its manifest says
    │   └── InputError              (ddcat.engines) images that the engine does not take
    ├── TrainError                  (ddcat_train)   configuration, data sets, checkpoints
    ├── ExportError                 (ddcat_export)  a graph that is not the model
    ├── ServeError                  (ddcat_serve)   settings, requests
    └── BenchError                  (ddcat_bench)   a measurement that cannot be made

The message is one line for the user: what is wrong, where, and what to do. A command prints it and exits with 2.
"""

__all__ = ["BundleError", "DdcatError", "WriteError"]


class DdcatError(Exception):
    """Base of everything that ddcat raises on purpose; its message is written for the user."""

    exit_status = 2  # of the command that it ends


class BundleError(DdcatError):
    """A bundle is missing, damaged, altered, or of a schema that this version does not read."""


class WriteError(DdcatError):
    """A file cannot be written: the disk is full, or the folder is read-only. The earlier file is unchanged."""
