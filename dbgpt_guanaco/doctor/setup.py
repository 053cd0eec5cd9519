"""What is examined: the settings, and the model that they name. Found out once, when first asked.

What one check must tell is not told again by those that build on it: they are skipped.
"""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dbgpt_guanaco.doctor.findings import NotCheckedError
from dbgpt_guanaco.errors import GuanacoError

if TYPE_CHECKING:
    from dbgpt_guanaco.adapters.family import Family
    from dbgpt_guanaco.adapters.resolve import ModelSource
    from dbgpt_guanaco.settings import Settings


class Setup:
    """A configuration, in the folder where it is.

    Args:
        env_file: Where settings stand beside the environment.
        is_deep: Also read what takes long to read.
        settings: In place of those that would be read.
    """

    def __init__(
        self,
        env_file: Path = Path(".env"),
        *,
        is_deep: bool = False,
        settings: "Settings | None" = None,
    ) -> None:
        self.env_file, self.is_deep, self._settings = env_file, is_deep, settings
        self.told: set[str] = set()  # what need not be told twice

    @cached_property
    def settings(self) -> "Settings":
        """The settings.

        Raises:
            NotCheckedError: They are wrong.
        """
        from dbgpt_guanaco.environment import load_settings

        try:
            return self._settings or load_settings(self.env_file)
        except GuanacoError:
            raise NotCheckedError("the settings must be mended first") from None

    @cached_property
    def source(self) -> "ModelSource":
        """Where the model is.

        Raises:
            NotCheckedError: It is not on this machine, or not whole.
        """
        from dbgpt_guanaco.adapters.resolve import resolve

        try:
            return resolve(self.settings.model, may_fetch=False)
        except GuanacoError:
            raise NotCheckedError("the model must be there first") from None

    @cached_property
    def config(self) -> Any:  # noqa: ANN401 - of transformers
        """The model's config.

        Raises:
            NotCheckedError: It cannot be used.
        """
        from dbgpt_guanaco.adapters.loading import load_config

        trusts_code = self.settings.model.trust_remote_code
        try:
            return load_config(self.source.model_path, trusts_code=trusts_code)
        except GuanacoError:
            raise NotCheckedError("the model's files must be mended first") from None

    @cached_property
    def family(self) -> "Family":
        """How the model is talked to.

        Raises:
            NotCheckedError: The tokenizer cannot be loaded, or there is no template.
        """
        from dbgpt_guanaco.adapters import default_registry
        from dbgpt_guanaco.adapters.family import find_family

        try:
            return find_family(self.source, self.config, self.settings.model, default_registry())
        except GuanacoError:
            raise NotCheckedError("the tokenizer must be mended first") from None
