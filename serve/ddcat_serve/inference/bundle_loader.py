"""Loading a bundle of a folder while other engines answer."""

import threading

from ddcat.bundle import TrustPolicy, open_bundle
from ddcat.errors import BundleError
from ddcat.passport import read_passport
from ddcat_serve.inference.bundle_folder import BundleFolder
from ddcat_serve.inference.model_registry import Observe, load_model
from ddcat_serve.inference.served_model import ServedModel
from ddcat_serve.inference.turns import Turns
from ddcat_serve.settings import Settings

__all__ = ["BundleLoader"]


class BundleLoader:
    """
    Verifies bundles of a folder, and makes them models that are ready to answer: one at a time.

    `threads` are those of each engine, by default the physical cores; `trust` is the required proof of the bundles' origin;
    `observe` is called after each batch, in the thread of the engine.
    """

    def __init__(
        self, folder: BundleFolder, *, settings: Settings, threads: int | None, trust: TrustPolicy, observe: Observe
    ) -> None:
        self.folder, self.trust = folder, trust
        self._settings, self._threads, self._observe = settings, threads, observe
        self._turns, self._one_at_a_time = Turns(), threading.Lock()

    def load(
        self, name: str, version: str, *, share: float, answering: ServedModel | None, digest: str | None = None, beside: bool
    ) -> ServedModel | None:
        """
        Load a bundle; return None if it is the one that answers already.

        Its engine may use a `share` of the engines' memory. `answering` is the model that answers under this name; `digest`, if
        given, is the one that the bundle must have; `beside`: other engines answer meanwhile.

        BundleError or EngineError for a bundle that is incomplete or untrusted, that the gate refused, that does not run, or
        that answers its golden images differently.
        """
        with self._one_at_a_time:
            trust = self.trust if digest is None else self.trust._replace(digests=(digest,))
            bundle = open_bundle(self.folder.bundle(name, version), trust)
            passport = read_passport(bundle, self.trust)
            if passport.warning is not None:  # a server that takes bundles as they come takes none that the gate refused
                raise BundleError(f"{bundle.path}: {passport.warning}")
            same = answering is not None and (answering.version, answering.bundle.digest) == (version, bundle.digest)
            if same and answering is not None and answering.ready:
                return None
            return load_model(
                bundle, passport, name, version,
                settings=self._settings, threads=self._threads, observe=self._observe, share=share, turns=self._turns,
                beside=beside,
            )  # fmt: skip
