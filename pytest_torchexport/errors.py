"""The exceptions of the package: one tree, standard library only.

`UsageError` and `BackendUnavailable` say what the user has to change. The two assertion errors carry the
`Outcome` of a check that did not end in `equivalent`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pytest_torchexport.outcome import Location, Outcome


class TorchExportError(Exception):
    """Base of all exceptions that the package raises itself."""


class UsageError(TorchExportError, ValueError):
    """The call, the marker or an option is wrong. The message says where and how to mend it."""


class BackendUnavailable(TorchExportError):
    """A backend or device cannot run on this machine. The message says why and what to install."""


class ExportRefused(TorchExportError):
    """An exporter did not accept the model, for a reason that the backend can state better than the exporter.

    Backends normally let the exporter's own exception through: it is turned into the same verdict, `refused`.

    Args:
        reason: what the exporter cannot do, in the user's words, with a way out.
        location: the user's line, if it is known.
    """

    def __init__(self, reason: str, location: Location | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.location = location


class NothingCompiled(TorchExportError):
    """The program ran, but none (or not all) of it was the exported form: there is nothing to compare.

    Args:
        reason: why, in the user's words.
        location: the user's line at which the program left the exported form, if it is known.
    """

    def __init__(self, reason: str, location: Location | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.location = location


class ConventionError(TorchExportError):
    """An input cannot be passed to an exported program because the export fixed or dropped that argument.

    Raised by an `Exported` before it runs. The engine does not run such an input: it goes to the not-checked
    ledger, or, if the user declared a domain for the argument, becomes a `baked value` mismatch.

    Args:
        argument: name of the argument that the exported program does not take.
        reason: why, in the user's words.
    """

    def __init__(self, argument: str, reason: str) -> None:
        super().__init__(reason)
        self.argument = argument
        self.reason = reason


class NotEquivalent(AssertionError):
    """The exported program is not equivalent to eager: verdict `mismatch`, `refused`, `failed` or `over-budget`."""

    __module__ = "pytest_torchexport"  # where users import it from; shorter in test summaries

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome


class ReferenceInvalid(AssertionError):
    """No verdict is possible because of the eager module itself: verdict `invalid`.

    It is not a `NotEquivalent`, so that an expected failure of a backend does not cover a broken test.
    """

    __module__ = "pytest_torchexport"  # where users import it from; shorter in test summaries

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.message)
        self.outcome = outcome
