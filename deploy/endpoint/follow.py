"""Where the model comes from: one checkpoint, or a promoted name that is followed."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from aalnet.errors import AalnetError
from cluster.runs.checkpoint import find_checkpoint
from cluster.runs.promotions import Promotion, checkpoint_of, read_model
from cluster.storage.store import Store, StoreError
from deploy.endpoint.metrics import Metrics
from deploy.endpoint.model import LoadedModel, Loader, ModelHolder
from deploy.endpoint.settings import EndpointSettings

log = logging.getLogger("aalnet.endpoint")


@dataclass(frozen=True)
class ModelSource:
    """A checkpoint as `aalnet sample` names it, or (`promoted`) a model's name."""

    store: Store
    name: str
    promoted: bool = False

    def open(
        self, settings: EndpointSettings, metrics: Metrics
    ) -> tuple[ModelHolder, ModelFollower | None]:
        """The model, loaded, and who follows its name.

        Raises:
            CheckpointError: there is no such thing, it is damaged or draws the wrong shape.
            NonFiniteError: it draws what is not finite.
            StoreError: the storage does not answer.
        """
        loader = Loader(settings)
        if not self.promoted:
            checkpoint = find_checkpoint(self.store, self.name)
            holder = ModelHolder(loader.load(checkpoint, checkpoint.run.name))
            _announce(holder.current, metrics)
            return holder, None
        promotion = read_model(self.store, self.name)
        holder = ModelHolder(loader.load(checkpoint_of(self.store, promotion), self.name))
        _announce(holder.current, metrics)
        metrics.follows(promotion, promotion)
        return holder, ModelFollower(self.store, promotion, loader, holder, metrics)


class ModelFollower:
    """A thread that looks at a model's name and swaps in what was promoted, if it is good."""

    def __init__(
        self, store: Store, promotion: Promotion, loader: Loader, holder: ModelHolder,
        metrics: Metrics,
    ) -> None:  # fmt: skip
        self._store, self._loader, self._holder, self._metrics = store, loader, holder, metrics
        self._promotion, self._reason = promotion, ""
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Start looking, every `poll_s`."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._end.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._end.wait(self._loader.settings.poll_s):
            try:
                self.look()
            except Exception:  # the thread must outlive whatever a look met
                log.exception("looking at model `%s` failed", self._promotion.model)

    def look(self) -> None:
        """Swap in a new promotion. A bad one is refused once; the old model stays."""
        try:
            promotion = read_model(self._store, self._promotion.model)
            self._metrics.follows(promotion, self._promotion)
            if promotion == self._promotion:
                return
            loaded = self._loader.load(checkpoint_of(self._store, promotion), promotion.model)
        except StoreError as error:  # for now: the next look tries again
            log.warning("model `%s` cannot be read now: %s", self._promotion.model, error)
        except (AalnetError, RuntimeError, ValueError) as error:  # RuntimeError: out of memory
            self._refuse(str(error))
        else:
            self._promotion, self._reason = promotion, ""
            self._metrics.follows(promotion, promotion)
            self._holder.current = loaded
            _announce(loaded, self._metrics)
            self._metrics.swaps.labels("swapped").inc()
            log.info("model `%s` is %s now", loaded.name, loaded.title)

    def _refuse(self, reason: str) -> None:
        """Say so once, though every look meets it again."""
        if reason == self._reason:
            return
        self._reason = reason
        stays = self._holder.current.title
        log.error("promotion of `%s` refused, %s stays: %s", self._promotion.model, stays, reason)
        self._metrics.swaps.labels("refused").inc()


def _announce(model: LoadedModel, metrics: Metrics) -> None:
    metrics.serves(model.name, model.run, model.images, model.digest)
