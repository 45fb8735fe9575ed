"""A misspelt --params name is an error before anything runs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from sleep_pipeline.runtime_parameters import UnknownParameterError, check_groups, check_names, known_parameter_names


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def test_names_come_from_parameter_files_of_the_environments_in_use(tmp_path: Path) -> None:
    write(tmp_path / "base" / "parameters_pretrain.yml", "pretrain: {steps: 1}\n")
    write(tmp_path / "base" / "parameters" / "sleep.yml", "dream: {}\n")
    write(tmp_path / "smoke" / "parameters.yml", "tiny: 1\n")
    write(tmp_path / "gpu" / "parameters.yml", "wide: 1\n")
    assert known_parameter_names(tmp_path, ["base", "smoke"]) == {"pretrain", "dream", "tiny"}


def test_names_read_through_runtime_params_are_known(tmp_path: Path) -> None:
    write(
        tmp_path / "base" / "catalog.yml",
        'm: {filepath: "data/${runtime_params:night,1}/${ runtime_params: model }"}\n',
    )
    assert known_parameter_names(tmp_path, ["base"]) == {"night", "model"}


def test_other_files_define_no_parameters(tmp_path: Path) -> None:
    write(tmp_path / "base" / "mlflow.yml", "enabled: true\n")
    assert known_parameter_names(tmp_path, ["base", "local"]) == set()


def test_a_misspelt_name_is_refused_with_the_closest_one() -> None:
    with pytest.raises(UnknownParameterError, match=r"'pretrian'.*did you mean 'pretrain'\?"):
        check_names({"pretrian": {"steps": 3}}, {"pretrain", "night"})


def test_a_name_that_resembles_nothing_is_refused_with_all_known_ones() -> None:
    with pytest.raises(UnknownParameterError, match="known are: night, pretrain"):
        check_names({"zzz": 1}, {"pretrain", "night"})


def test_a_session_refuses_the_name_before_it_builds_the_catalog(toy_project: Callable[..., Path]) -> None:
    from kedro.framework.session import KedroSession

    project = toy_project({"catalog.yml": "broken: {type: no.such.DataSet}\n"})
    with (
        KedroSession.create(project_path=project, runtime_params={"toyy": {"steps": 1}}) as session,
        pytest.raises(UnknownParameterError, match="did you mean 'toy'"),
    ):
        session.run()


def test_a_session_takes_known_names(toy_project: Callable[..., Path]) -> None:
    from kedro.framework.session import KedroSession

    with KedroSession.create(project_path=toy_project(), runtime_params={"toy": {"steps": 5}}) as session:
        assert session.run()["done"].load() == 5


def test_unknown_names_inside_a_group_are_refused_by_its_model(toy_project: Callable[..., Path]) -> None:
    from kedro.framework.session import KedroSession

    with (
        KedroSession.create(project_path=toy_project(), runtime_params={"toy": {"stpes": 1}}) as session,
        pytest.raises(Exception, match="stpes"),
    ):
        session.run()


def test_a_misspelt_group_in_a_file_of_an_environment_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "base" / "parameters_evaluation.yml", "evaluation: {match: exact}\n")
    write(tmp_path / "mine" / "parameters_evaluation.yml", "_limit: 3\nevaluation: {questions: 3}\n")
    check_groups(tmp_path, "base", "mine")
    write(tmp_path / "mine" / "parameters_night.yml", "evaluate: {match: contains}\n")
    with pytest.raises(UnknownParameterError, match=r"'evaluate' in .*parameters_night.yml: did you mean 'evaluation'"):
        check_groups(tmp_path, "base", "mine")
