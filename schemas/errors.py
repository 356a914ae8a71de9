"""Every error teachonce raises on purpose.

TeachonceError
├── ConfigError        the configuration or the command line is wrong; nothing was started
├── StoreError         the object store did something it should not
│   ├── AlreadyExists  a create-only put found an object of that name
│   └── NotFound       no object of that name
├── CacheError         what lies on the store is not a cache this version can use
│   └── DamageError    an object that a record names is missing, altered or of other rows
├── SourceError        the data set cannot be read just now; nothing wrong was committed
├── ImageError         one picture cannot be used; becomes a bad row, never a crash
├── TeacherError       a teacher cannot be built, or its weights do not fit
└── ResumeError        a training run cannot go on from its checkpoints

Each takes its message first and its details as keywords, so that it survives pickling between
processes. A message says what was being done, what was found, and what to do next.
"""


class TeachonceError(Exception):
    """Root of the tree. `exit_status` is what a command returns when it ends with this error."""

    exit_status = 1

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.__dict__.update(details)


class ConfigError(TeachonceError):
    exit_status = 2


class StoreError(TeachonceError):
    pass


class AlreadyExists(StoreError):
    pass


class NotFound(StoreError):
    pass


class CacheError(TeachonceError):
    exit_status = 2


class DamageError(CacheError):
    exit_status = 1


class SourceError(TeachonceError):
    pass


class ImageError(TeachonceError):
    pass


class TeacherError(TeachonceError):
    exit_status = 2


class ResumeError(TeachonceError):
    exit_status = 2
