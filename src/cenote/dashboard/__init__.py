"""What a browser, a load balancer and Prometheus are shown of a store. Needs the extra `dashboard`."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cenote.errors import SetupError

if TYPE_CHECKING:
    from cenote.dashboard.application import app as app
    from cenote.dashboard.probes import routes as routes

_HOMES = {"app": "cenote.dashboard.application", "routes": "cenote.dashboard.probes"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'cenote.dashboard' has no attribute {name!r}")
    try:
        return getattr(import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        raise SetupError("the dashboard is not installed", hint="pip install 'cenote[dashboard]'") from error
