"""The pipelines that `kedro run --pipelines=NAME` knows."""

from kedro.framework.project import find_pipelines
from kedro.pipeline import Pipeline

DEFAULT_PIPELINE = "sleep"


def register_pipelines() -> dict[str, Pipeline]:
    """Find every `pipelines/NAME/` package and name the one that a plain `kedro run` runs.

    Kedro asks for a subset when pipelines are named on the command line; then the default is absent
    from the result and so from the registry, which is what Kedro expects.

    Raises:
        ImportError: a pipeline package cannot be imported; a pipeline that silently vanishes from the
            registry would be reported as unknown instead.
    """
    pipelines = find_pipelines(raise_errors=True)
    if "__default__" in pipelines and DEFAULT_PIPELINE in pipelines:
        pipelines["__default__"] = pipelines[DEFAULT_PIPELINE]
    return pipelines
