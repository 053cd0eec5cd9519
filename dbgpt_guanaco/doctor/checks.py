"""Every check: its name, the function that makes it, and how long that may take."""

from dataclasses import dataclass

DEEP_S = 4 * 3600.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at.

    Attributes:
        name: For a person.
        function: ``module.function`` that takes a ``Setup`` and returns a ``Finding``. Imported
            only where it is run, so that a library which is broken or missing costs one line.
        limit_s: After so many seconds it has failed.
        deep_limit_s: The same where what takes long is read, too.
    """

    name: str
    function: str
    limit_s: float
    deep_limit_s: float


def _check(
    name: str, function: str, limit_s: float = 15, deep_limit_s: float | None = None
) -> Check:
    return Check(name, f"dbgpt_guanaco.doctor.{function}", limit_s, deep_limit_s or limit_s)


CHECKS = (
    _check("Python", "libraries.python"),
    _check("libraries", "libraries.versions"),
    _check("native code", "libraries.native_code", limit_s=60),
    _check("package kernels", "libraries.kernels_package"),
    _check("DB-GPT's plugin", "libraries.plugin", limit_s=30),
    _check("locale and clock", "surroundings.locale_and_clock"),
    _check("open files", "surroundings.open_files"),
    _check("settings", "configuration.values"),
    _check(".env", "configuration.env_file"),
    _check("keys", "keys.keys"),
    _check("proxies", "surroundings.proxies"),
    _check("port", "port.port"),
    _check("GPU", "gpu.gpu", limit_s=60),
    _check("4-bit arithmetic", "arithmetic.four_bit", limit_s=60),
    _check("8-bit arithmetic", "arithmetic.eight_bit", limit_s=60),
    _check("CPU decoder", "decoder.cpu_decoder", limit_s=130),
    _check("model", "model.model", limit_s=30),
    _check("model's files", "weights.files", limit_s=30, deep_limit_s=DEEP_S),
    _check("LoRAs", "loras.loras", limit_s=30),
    _check("tokenizer", "tokenizer.tokenizer", limit_s=30),
    _check("template", "tokenizer.template"),
    _check("memory", "memory.memory", limit_s=30),
    _check("disk", "disk.disk"),
    _check("embedding model", "model.embedding_model"),
    _check("controllers", "controllers.controllers", limit_s=30),
)
