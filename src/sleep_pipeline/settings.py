"""Kedro's settings of this project: how configuration is merged and which hooks run."""

from typing import Any

from omegaconf.resolvers import oc

from sleep_pipeline.console import speak_to_people
from sleep_pipeline.environment import apply_defaults
from sleep_pipeline.night_hook import NightHook
from sleep_pipeline.night_number import night_folder, night_number
from sleep_pipeline.runtime_parameters import ParameterNamesHook
from sleep_pipeline.session import NightSession
from sleep_pipeline.tracking.hooks import MlflowHook

apply_defaults()
speak_to_people()

SESSION_CLASS = NightSession

HOOKS = (ParameterNamesHook(), NightHook(), MlflowHook())

# Kedro depends on its telemetry plugin; its hooks have no business here.
DISABLE_HOOKS_FOR_PLUGINS = ("kedro-telemetry",)

CONFIG_LOADER_ARGS: dict[str, Any] = {
    "base_env": "base",
    "default_run_env": "local",
    # An environment states what differs from base; the default strategy would drop the siblings.
    "merge_strategy": {"parameters": "soft", "mlflow": "soft"},
    "config_patterns": {"mlflow": ["mlflow.yml"]},
    # Kedro allows ${oc.env:NAME,default} in credentials only, unless the resolver is handed in.
    "custom_resolvers": {"oc.env": oc.env, "night_number": night_number, "night_folder": night_folder},
}
