"""Exceptions and warnings.

Everything that streamcca raises on purpose is a `StreamCCAError`, and at the same time the
built-in exception that a Python user would expect.
"""


class StreamCCAError(Exception):
    """Base class of every error that streamcca raises on purpose."""


class InputError(StreamCCAError, ValueError):
    """A value or a shape that cannot be used."""


class DTypeError(StreamCCAError, TypeError):
    """An element type, or a kind of object, that cannot be used."""


class NonFiniteError(InputError):
    """A row holds NaN or infinity, and the policy is to refuse it."""


class UnderdeterminedError(InputError):
    """Too few rows: every correlation would be 1 whatever the data."""


class AccuracyError(StreamCCAError, ValueError):
    """The error bound of a result is too large for the result to mean anything."""


class NumericError(StreamCCAError, ArithmeticError):
    """A matrix decomposition failed."""


class DeviceError(StreamCCAError, RuntimeError):
    """Rows or moments are on a device that this build cannot use."""


class ProcessError(StreamCCAError, RuntimeError):
    """Moments were used in a forked process."""


class InstructionSetError(StreamCCAError, ValueError):
    """STREAMCCA_ISA names a level that does not exist or that this CPU cannot run."""


class LayerError(StreamCCAError, ValueError):
    """A layer does not exist, was never called, or returned nothing that can be used as rows."""


class ReplayError(StreamCCAError, ValueError):
    """A second pass over a loader brought other rows than the first, or two models saw different rows."""


class MissingFileError(StreamCCAError, FileNotFoundError):
    """There is no such file."""


class StateFileError(StreamCCAError, ValueError):
    """A file of saved moments, or of activations, is damaged or foreign."""


class StorageError(StreamCCAError, OSError):
    """A file could not be written; the file that was there before is untouched."""


class MemoryLimitError(StreamCCAError, MemoryError):
    """The moments would not fit into the memory that is available."""


class StreamCCAWarning(UserWarning):
    """Base class of the warnings that accompany a result."""


class AccuracyWarning(StreamCCAWarning):
    """Rounding or an unresolved cut limits the digits of a result."""


class SampleSizeWarning(StreamCCAWarning):
    """Too few rows for the number of kept directions."""
