"""Settings, in the groups that the layers take. ``environment.py`` reads them.

Where DB-GPT has a key, that key is read; what DB-GPT has no key for is called ``GUANACO_…``.
"""

from dbgpt_guanaco.settings.access import AccessSettings, check_key
from dbgpt_guanaco.settings.cluster import ClusterSettings
from dbgpt_guanaco.settings.engine import LORA_NAME, EmbeddingSettings, EngineSettings
from dbgpt_guanaco.settings.fields import Group, Network, memory_bytes, setting
from dbgpt_guanaco.settings.life import LifeSettings
from dbgpt_guanaco.settings.model import DEMO_MODEL, ModelSettings, Quantization
from dbgpt_guanaco.settings.observation import LogFormat, ObservationSettings
from dbgpt_guanaco.settings.server import LegacyEcho, ServerSettings

__all__ = [
    "DEMO_MODEL",
    "LORA_NAME",
    "AccessSettings",
    "ClusterSettings",
    "EmbeddingSettings",
    "EngineSettings",
    "Group",
    "LegacyEcho",
    "LifeSettings",
    "LogFormat",
    "ModelSettings",
    "Network",
    "ObservationSettings",
    "Quantization",
    "ServerSettings",
    "Settings",
    "check_key",
    "memory_bytes",
    "setting",
]


class Settings(Group):
    """All settings, in the groups that the layers take."""

    model: ModelSettings = ModelSettings()
    engine: EngineSettings = EngineSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    server: ServerSettings = ServerSettings()
    cluster: ClusterSettings = ClusterSettings()
    observation: ObservationSettings = ObservationSettings()
    life: LifeSettings = LifeSettings()
    access: AccessSettings = AccessSettings()
