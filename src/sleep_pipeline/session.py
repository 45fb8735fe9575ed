"""The session of this project: a night that was cut short goes on where it was, and what it writes is its user's."""

from __future__ import annotations

import logging
import os
from typing import Any

from kedro.framework.session import KedroSession

logger = logging.getLogger(__name__)

NIGHTLY = frozenset({"__default__", "sleep", "collect", "seed", "dream", "refine", "evaluate"})
_NARROWED = ("tags", "node_names", "from_nodes", "to_nodes", "from_inputs", "to_outputs", "namespaces")


class NothingToDo(RuntimeError):
    """There is nothing for a run to do, as on a day that brought no memory; no failure, and said in one line."""


class NightSession(KedroSession):
    """Runs of a night's pipelines leave out what is done already; a run that names nodes does as it is told.

    Every data set of a night is whole or not there, so what is there is done. To do a night again from some point on,
    as long as it is not registered, name the node: `kedro run --pipelines=sleep --from-nodes=train_expert_node`. What
    the nodes of such a run had made is removed before the first of them.
    """

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `KedroSession.run`."""
        names = kwargs.get("pipeline_names") or [kwargs.get("pipeline_name") or "__default__"]
        if not args and NIGHTLY.issuperset(names) and not any(kwargs.get(name) for name in _NARROWED):
            kwargs["only_missing_outputs"] = True
        before = os.umask(0)
        # Other users of the machine read neither memories nor what was made of them; the user's group may.
        os.umask(before | 0o007)
        try:
            return super().run(*args, **kwargs)
        except NothingToDo as told:
            logger.warning("%s", told)
            return {}
        finally:
            os.umask(before)
