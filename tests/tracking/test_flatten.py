"""Parameters reach the run table under flat names."""

from kedro.io import DataCatalog, MemoryDataset
from kedro.pipeline import Pipeline, node
from pydantic import BaseModel

from sleep_pipeline.tracking.flatten import clean_name, flatten, used_parameters


class Inner(BaseModel):
    lr: float = 1e-3
    betas: list[float] = [0.9, 0.95]


class Outer(BaseModel):
    name: str = "tiny"
    seed: int | None = None
    inner: Inner = Inner()


def test_models_become_dotted_names_and_texts() -> None:
    assert flatten("pretrain", Outer()) == {
        "pretrain.name": "tiny",
        "pretrain.seed": "null",
        "pretrain.inner.lr": "0.001",
        "pretrain.inner.betas": "[0.9, 0.95]",
    }


def test_plain_mappings_and_scalars_work_like_models() -> None:
    assert flatten("a", {"b": {"c": True}, "d": {}}) == {"a.b.c": "true", "a.d": "{}"}
    assert flatten("night", 7) == {"night": "7"}


def test_characters_that_mlflow_refuses_are_replaced() -> None:
    assert clean_name("seconds/work([a,b]) -> [c]: 1.5") == "seconds/work__a_b__ -_ _c_: 1.5"


def test_only_parameters_that_the_pipeline_takes_are_kept() -> None:
    catalog = DataCatalog(
        {"params:a": MemoryDataset(Inner()), "params:b": MemoryDataset({"x": 1}), "data": MemoryDataset(3)}
    )
    pipeline = Pipeline([node(lambda a, data: a, ["params:a", "data"], "out", name="n")])
    assert used_parameters(pipeline, catalog) == flatten("a", Inner())


def test_a_node_that_takes_all_parameters_logs_all_of_them() -> None:
    catalog = DataCatalog({"parameters": MemoryDataset({"a": Inner(), "night": 2})})
    pipeline = Pipeline([node(lambda p: p, "parameters", "out", name="n")])
    assert used_parameters(pipeline, catalog) == {**flatten("a", Inner()), "night": "2"}
