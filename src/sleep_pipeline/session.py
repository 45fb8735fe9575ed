"""The session of this project: a night that was cut short goes on where it was."""

from __future__ import annotations

from typing import Any

from kedro.framework.session import KedroSession

NIGHTLY = frozenset({"__default__", "sleep", "collect", "seed", "dream", "refine", "evaluate"})
_NARROWED = ("tags", "node_names", "from_nodes", "to_nodes", "from_inputs", "to_outputs", "namespaces")


class NightSession(KedroSession):
    """Runs of a night's pipelines leave out what is done already; a run that names nodes does as it is told.

    Every data set of a night is whole or not there, so what is there is done. To do a night again from some point on,
    as long as it is not registered, name the node: `kedro run --pipelines=sleep --from-nodes=train_expert_node`.
    """

    def run(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See `KedroSession.run`."""
        names = kwargs.get("pipeline_names") or [kwargs.get("pipeline_name") or "__default__"]
        if not args and NIGHTLY.issuperset(names) and not any(kwargs.get(name) for name in _NARROWED):
            kwargs["only_missing_outputs"] = True
        return super().run(*args, **kwargs)
