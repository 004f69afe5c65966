"""Why a model is not loaded: one error for each part that can be missing or false, in the order in which they are
checked."""


class NotLoaded(Exception):
    """Base: the model was not loaded, and no tensor or tree of it was read."""


class NoBundle(NotLoaded):
    """There is nothing at this path, or a file that no federation signed for."""


class ArchiveRefused(NotLoaded):
    """The files cannot be taken as a model's: a path, a link, a size or a form that no bundle has."""


class TrustRefused(NotLoaded):
    """The trust document, or a membership, is not signed by the officers."""


class SignaturesRefused(NotLoaded):
    """The aggregator, a governance officer or enough hospitals did not sign, or they signed for another model."""


class FilesRefused(NotLoaded):
    """A file is missing, or is not the one that was signed."""


class ProofRefused(NotLoaded):
    """The log is not shown to hold the release of this model."""


class QuorumMissed(NotLoaded):
    """Too few hospitals cosigned the checkpoint that holds the release."""


class LogNotFresh(NotLoaded):
    """The audit bundle that was given does not verify, or does not continue the log of the release."""


class ModelIsRetired(NotLoaded):
    """A fresher log says that the model is not to be used any more."""


class ModelIsSuperseded(NotLoaded):
    """A fresher log holds a later release of the same study."""


class StructureRefused(NotLoaded):
    """Signed, and still not a model that may be read: tensors, numbers, trees or schema are not the study's."""
