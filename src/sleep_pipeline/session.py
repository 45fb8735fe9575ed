"""The session of this project: a night that was cut short goes on where it was, and what it writes is its user's."""

from __future__ import annotations

import logging
import os
from typing import Any

import click
from kedro.framework.session import KedroSession

logger = logging.getLogger(__name__)

NIGHTLY = frozenset({"__default__", "sleep", "collect", "seed", "dream", "refine", "evaluate"})
_NARROWED = ("tags", "node_names", "from_nodes", "to_nodes", "from_inputs", "to_outputs", "namespaces")


class NothingToDo(RuntimeError):
    """There is nothing for a run to do, as on a day that brought no memory; no failure, and said in one line."""


def says_what_to_do(error: BaseException) -> bool:
    """Whether an error is one of this project's own, or of its settings, which say what is wrong and what to do."""
    from kedro.validation.exceptions import ParameterValidationError
    from omegaconf.errors import OmegaConfBaseException

    own = type(error).__module__.startswith("sleep_pipeline.")
    return own or isinstance(error, ParameterValidationError | OmegaConfBaseException)


class NightSession(KedroSession):
    """Runs of a night's pipelines leave out what is done already; a run that names nodes does as it is told.

    Every data set of a night is whole or not there, so what is there is done. To do a night again from some point on,
    as long as it is not registered, name the node: `kedro run --pipelines=sleep --from-nodes=train_expert_node`. What
    the nodes of such a run had made is removed before the first of them, with all that was made from it.

    On a command line an error that says what to do is all that is printed, and the status is 1; the traceback is logged
    at the level DEBUG. A caller in Python gets the error itself.
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
        except Exception as error:
            if not says_what_to_do(error) or click.get_current_context(silent=True) is None:
                raise
            logger.debug("the run ends", exc_info=True)
            raise click.ClickException(str(error)) from error
        finally:
            os.umask(before)
